"""Metrics are means over tokens, and absent where they were not computed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from vopd import ESTIMATORS
from vopd.training.batch import Batch
from vopd.training.monitoring.clock import StepClock
from vopd.training.monitoring.metrics import Averages, add_completion_metrics

CPU = torch.device("cpu")
ALWAYS = {
    "step", "epoch", "loss", "grad_norm", "learning_rate", "completion_length", "truncated_share",
    "tokens_per_second", "num_tokens", "step_time",
    "seconds/rollout", "seconds/scoring", "seconds/update", "seconds/processor",
}  # fmt: skip
EXACT = {"reverse_kl", "variance/none", "variance/value", "variance/optimal", "value_hurts_share"}


class Ranks:
    """Stands for accelerate: adds the sums that another rank would bring."""

    num_processes = 1

    def __init__(self, other: torch.Tensor | None = None) -> None:
        self.other = other

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "sum"
        return tensor if self.other is None else tensor + self.other


def test_means_weigh_every_token_once_over_micro_batches_and_ranks() -> None:
    averages = Averages()
    averages.add("x", torch.tensor([[1.0, 2.0, 50.0]]), torch.tensor([[1, 1, 0]]))
    averages.add("x", torch.tensor([6.0]))
    assert averages.reduce(Ranks(torch.tensor([11.0, 1.0, 0.0]))) == {"x": 5.0}
    assert averages.reduce(Ranks()) == {}


def test_spread_is_that_of_all_values() -> None:
    averages = Averages()
    values = torch.randn(6, dtype=torch.float64) + 3
    averages.add("reward", values[:2], spread=True)
    averages.add("reward", values[2:], spread=True)
    found = averages.reduce(Ranks())
    assert found["reward/mean"] == pytest.approx(values.mean().item())
    assert found["reward/std"] == pytest.approx(values.std(correction=0).item())


def test_nothing_added_is_absent_and_so_is_what_is_not_finite() -> None:
    averages = Averages()
    averages.add("empty", torch.ones(3), torch.zeros(3))
    averages.add("infinite", torch.tensor([float("-inf"), 1.0]))
    averages.add("masked", torch.tensor([float("nan"), 1.0]), torch.tensor([0, 1]))
    assert averages.reduce(Ranks()) == {"masked": 1.0}


def test_completions_are_cut_off_where_their_last_token_ends_nothing() -> None:
    averages = Averages()
    ids = torch.tensor([[5, 9, 0], [5, 6, 7], [2, 0, 0], [0, 0, 0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0]])
    add_completion_metrics(averages, Batch(ids, mask, ids, mask), [2, 9])
    assert averages.reduce(Ranks()) == {"completion_length": 1.5, "truncated_share": 0.5}


def test_the_clock_splits_a_step_and_ignores_what_lies_between_steps() -> None:
    clock, averages = StepClock(), Averages()
    clock.spend("scoring", 100.0)  # an evaluation
    clock.on_step_begin(None, None, None)
    clock.spend("rollout", 0.5)
    clock.on_step_end(None, None, None)
    clock._total, clock._processor, clock._before_optimizer = 2.0, 1.25, 1.75
    clock.report(averages, 30.0, 1, CPU)
    assert averages.reduce(Ranks()) == {
        "seconds/rollout": 0.5,
        "seconds/scoring": 0.0,
        "seconds/update": 1.5,
        "seconds/processor": 1.25,
        "step_time": 1.75,
        "tokens_per_second": 15.0,
    }
    clock.report(averages, 0.0, 1, CPU)
    assert averages.reduce(Ranks()) == {}


def test_processor_time_is_that_of_the_steps_and_not_of_waiting() -> None:
    clock, averages = StepClock(), Averages()
    for work, wait in ((True, False), (False, True)):
        clock.on_step_begin(None, None, None)
        started = time.process_time()
        while work and time.process_time() - started < 0.05:
            pass
        time.sleep(0.1 * wait)
        clock.on_step_end(None, None, None)
    clock.report(averages, 1.0, 1, CPU)
    assert 0.025 <= averages.reduce(Ranks())["seconds/processor"] < 0.05  # a step, of two


class Event:
    """Stands for ``torch.Event``, which needs a GPU: between two of them the device takes 0.25 s."""

    made: ClassVar[list[Event]] = []

    def __init__(self, device: torch.device, *, enable_timing: bool) -> None:
        assert device.type == "cuda" and enable_timing
        self.awaited = False

    def record(self) -> None:
        self.place = len(self.made)
        self.made.append(self)

    def synchronize(self) -> None:
        self.awaited = True

    def elapsed_time(self, later: Event) -> float:
        assert later.awaited
        return 250.0 * (later.place - self.place)


def test_the_time_of_a_device_is_read_when_the_step_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "Event", Event)
    monkeypatch.setattr(Event, "made", [])
    waits: list[None] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: waits.append(None))
    clock, averages, gpu = StepClock(), Averages(), torch.device("cuda", 0)
    with clock.spending("scoring", gpu):  # an evaluation
        pass
    clock.on_step_begin(None, None, None)
    for _ in range(2):
        with clock.spending("scoring", gpu):
            pass
        assert not waits and not any(event.awaited for event in Event.made)
    clock.on_step_end(None, None, None)
    clock.on_step_begin(None, None, None)
    clock.on_step_end(None, None, None)
    clock.report(averages, 30.0, 1, CPU)
    assert averages.reduce(Ranks())["seconds/scoring"] == 2 * 0.25 / 2


@pytest.mark.parametrize("estimator", ["vopd", "opd", "full_rkl"])
def test_a_step_logs_the_metrics_of_its_estimator_and_nothing_of_trl(
    estimator: str, make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    trainer = make_trainer(estimator=estimator, gradient_accumulation_steps=2)
    trainer.train()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == [1, 2]
    sampled = {"teacher_reward/mean", "teacher_reward/std", "reward/mean", "reward/std", "sampled_reverse_kl"}
    advantage = set() if estimator == "full_rkl" else {"advantage/mean", "advantage/std"}
    for record in records:
        assert record.keys() == ALWAYS | EXACT | sampled | advantage | {"entropy"}
        assert record["completion_length"] <= 4 and record["reverse_kl"] > 0
        assert record["sampled_reverse_kl"] == pytest.approx(-record["teacher_reward/mean"])
        assert all(record[f"reward/{part}"] == record[f"teacher_reward/{part}"] for part in ("mean", "std"))


def test_exact_metrics_are_absent_on_steps_that_do_not_measure(
    make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    make_trainer(metrics_every=2, max_steps=3, estimator="opd").train()
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    measured = [record.keys() >= EXACT for record in records]
    assert measured == [True, False, True]
    assert not (EXACT | {"entropy"}) & records[1].keys()


def test_metrics_are_those_of_the_completions_that_were_trained_on(
    make_trainer: Callable[..., Any], take_step: Callable[..., Any], recorded_completions: Any, tmp_path: Path
) -> None:
    """Over micro-batches of different lengths: the mean over tokens, not over micro-batches."""
    prompts = [f"{'so ' * a}{a}" for a in range(4)]
    logged = []
    for accumulation in (1, 4):
        trainer = make_trainer(
            prompts=prompts,
            per_device_train_batch_size=4 // accumulation,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
        )
        take_step(trainer, recorded_completions)
        logged.append(trainer.state.log_history[0])
    means = ("reverse_kl", "teacher_reward/mean", "advantage/std", "variance/optimal", "completion_length")
    for name in means:
        assert logged[0][name] == pytest.approx(logged[1][name], rel=1e-4), name
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 2  # samples_per_step
    for sample in samples:
        ids = recorded_completions(trainer.tokenize([sample["prompt"]])[0])
        assert sample["step"] == 1 and sample["truncated"] == (ids[-1] != 1)
        assert sample["tokens"] == [trainer.processing_class.decode([token]) for token in ids]
        assert len(sample["rewards"]) == len(sample["advantages"]) == len(sample["reverse_kl"]) == len(ids)


def test_estimators_without_full_rows_log_no_exact_quantity_where_they_compute_none(
    make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    sampled = [name for name, estimator in ESTIMATORS.items() if estimator.support != "full"]
    for estimator in sampled:
        k = 3 if ESTIMATORS[estimator].needs_top_k else None
        make_trainer(estimator=estimator, loss_top_k=k, metrics_every=0, max_steps=1).train()
        (record,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert not any(name.startswith("variance") for name in record), estimator
        assert all(isinstance(value, (int, float)) for value in record.values())

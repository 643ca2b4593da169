"""A teacher that scores a generated batch as a whole: the same training with fewer forward passes."""

from __future__ import annotations

import shutil
import time
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from vopd.kernels import Head
from vopd.models import States
from vopd.placement import Placement
from vopd.teachers import Rollouts
from vopd.teachers.ahead import Ahead
from vopd.teachers.local import InProcess, Masters

PROMPTS = [f"{'so ' * (a % 3)}{a} + {b} =" for a in range(3, 7) for b in range(2, 6)]
HINTS = [f"{'Hint! ' * (1 if place % 4 else 8)}{prompt}" for place, prompt in enumerate(PROMPTS)]

META = torch.device("meta")
Make = Callable[..., Any]


def data(**columns: list[str]) -> Dataset:
    return Dataset.from_dict({"prompt": PROMPTS, "hint": HINTS, **columns})


def teachers(name: str, folder: Path) -> dict[str, Any]:
    """Arguments of the trainer."""
    if name == "several":  # three names of two teachers, of which no micro-batch has rows for all
        named = {"one": str(folder), "self": "self:frozen", "again": str(folder)}
        rows = ["one", "self", "again", "one"] * 4
        return {"teacher_model": None, "teachers": named, "train_dataset": data(teacher=rows)}
    torch.manual_seed(5)
    adapters = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    return {
        "teacher_model": str(folder) if name == "offloaded" else name,
        "train_dataset": data(),
        "peft_config": adapters if name == "self:base" else None,
    }


def trained(trainer: Any, completions: Any) -> list[dict[str, torch.Tensor]]:
    """The trained weights after every step."""
    from transformers import TrainerCallback

    history = []

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
            named = model.named_parameters()
            history.append({name: part.detach().clone() for name, part in named if part.requires_grad})

    trainer.add_callback(Watch())
    trainer._generate_single_turn = lambda prompts, *rest, **named: [completions(ids) for ids in prompts]
    trainer.train()
    return history


def logged(trainer: Any) -> list[dict[str, float]]:
    """All that was logged, but for the times."""
    timed = ("second", "runtime", "step_time")
    return [
        {name: value for name, value in entry.items() if not any(word in name for word in timed)}
        for entry in trainer.state.log_history
    ]


def calls(monkeypatch: pytest.MonkeyPatch, holder: Any, name: str) -> list[Any]:
    """A list that gets the arguments of every call."""
    real, seen = getattr(holder, name), []

    def recording(*given: Any) -> Any:
        seen.append(given)
        return real(*given)

    monkeypatch.setattr(holder, name, recording)
    return seen


def slow(call: Any) -> Any:
    def slowly(*given: Any) -> Any:
        time.sleep(0.15)
        return call(*given)

    return slowly


@pytest.mark.parametrize(
    ("name", "scoring"),
    [("offloaded", "step"), ("several", "step_on_host"), ("self:base", "step_on_host"), ("self:average", "step")],
)
def test_a_batch_scored_as_a_whole_trains_the_same(
    name: str, scoring: str, make_trainer: Make, recorded_completions: Any, tiny_teacher_dir: Path, monkeypatch: Any
) -> None:
    copies, passes = (calls(monkeypatch, *one) for one in ((Masters, "lent_to"), (Placement, "frozen_states")))
    found = []
    for setting in ("micro_batch", scoring):
        given = teachers(name, tiny_teacher_dir)
        trainer = make_trainer(
            teacher_scoring=setting,
            teacher_prompt_column="hint",
            teacher_offload=name == "offloaded",
            gradient_accumulation_steps=4,
            optim="sgd",
            max_grad_norm=0,
            eval_strategy="steps",
            eval_steps=2,
            per_device_eval_batch_size=2,
            trainer={**given, "eval_dataset": given["train_dataset"].select(range(4))},
        )
        copies.clear()
        passes.clear()
        weights, alone = trained(trainer, recorded_completions), setting == "micro_batch"
        found.append((weights, logged(trainer)))
        if name == "offloaded":  # two steps of four micro-batches, and an evaluation of two batches
            assert len(copies) == (2 * 4 + 2 if alone else 2 + 2)
            assert len(passes) == (2 * 4 + 2 if alone else 2 * 3 + 2)
        if not alone:
            parts = [trainer.teacher] if name != "several" else [part for part, _ in trainer.teacher._parts]
            assert all(isinstance(part, Ahead) and not part._kept for part in parts)
    (weights, logs), (own, own_logs) = found
    assert any("eval_reverse_kl" in record for record in logs) and len(weights) == 2
    for step, before in zip(own, weights, strict=True):
        for key, value in before.items():
            torch.testing.assert_close(step[key], value, rtol=0, atol=1e-6)
    for record, expected in zip(own_logs, logs, strict=True):
        assert record == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_whole_batch_is_scored_under_autocast_and_counts_as_scoring(
    make_trainer: Make, recorded_completions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = calls(monkeypatch, Ahead, "_keep")
    trainer = make_trainer(teacher_scoring="step", bf16=True, max_steps=1)
    for name in ("begin", "settle"):
        monkeypatch.setattr(trainer.teacher, name, slow(getattr(trainer.teacher, name)))
    trained(trainer, recorded_completions)
    assert [states.hidden.dtype for *_, states in kept] == [torch.bfloat16]
    assert trainer.state.log_history[0]["seconds/scoring"] > 0.3


def test_a_run_resumes_exactly_and_with_either_setting(
    make_trainer: Make, recorded_completions: Any, tmp_path: Path
) -> None:
    """Rows scored as a whole have the numbers that a resumed run gives them too."""

    def run(folder: str, scoring: str, checkpoint: str | None = None) -> dict[str, torch.Tensor]:
        trainer = make_trainer(
            output_dir=str(tmp_path / folder), teacher_scoring=scoring, gradient_accumulation_steps=2, max_steps=3,
            save_strategy="steps", save_steps=1,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=checkpoint)
        return {name: weight.detach() for name, weight in trainer.model.named_parameters()}

    whole = run("whole", "step")
    for scoring in ("step", "micro_batch"):
        shutil.copytree(tmp_path / "whole", tmp_path / scoring)
        resumed = run(scoring, scoring, str(tmp_path / scoring / "checkpoint-1"))
        for name, weight in whole.items():
            torch.testing.assert_close(resumed[name], weight, rtol=0, atol=0 if scoring == "step" else 1e-5)


@dataclass
class OnMeta(InProcess):
    """Its states are on a device without values, which stands for a GPU: nothing can be copied from there."""

    rows: list[int] = field(default_factory=list)
    heads: list[weakref.ref[Head]] = field(default_factory=list)

    @contextmanager
    def ready(self, device: torch.device) -> Any:
        def states(texts: Any) -> States:
            self.rows.append(len(texts.completion_ids))
            head = Head(torch.zeros(7, 4))  # a new one for each pass, as of a sharded model
            self.heads.append(weakref.ref(head))
            return States(torch.zeros(*texts.completion_ids.shape, 4, device="meta"), head)

        yield states


def placed(most: int | None = None) -> Any:
    """Of one process, or of several with shards that run `most` forward passes."""
    device = SimpleNamespace(device=META)
    return SimpleNamespace(divided=most is not None, most=lambda count: most or count, accelerator=device)


def test_states_stay_on_the_device_unless_asked_otherwise_and_each_row_once() -> None:
    """Completions of 4, 1, 2 and 1 tokens: their states alone, from as many tokens at a time as the longest row has."""
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]])
    rollouts = Rollouts(mask[:, :1], mask[:, :1], mask, mask, mask, rows=torch.arange(5, 9))
    placement, teacher = placed(), OnMeta()
    ahead = Ahead(teacher, placement, rows=1, tokens=None, on_host=False)
    ahead.begin(rollouts)
    assert teacher.rows == [1, 1, 2]
    assert {number: len(states) for number, states in ahead._kept.items()} == {5: 4, 6: 1, 7: 2, 8: 1}
    assert all(states.is_meta and states._base is None for states in ahead._kept.values())
    with pytest.raises(NotImplementedError, match="copy out of meta"):
        Ahead(teacher, placement, rows=1, tokens=None, on_host=True).begin(rollouts)
    some = replace(rollouts, rows=torch.tensor([8, 5, 7]), completion_ids=mask[:3])
    (scored,) = ahead.score(some, States(torch.zeros(3, 4, 4), Head(torch.zeros(7, 4, device="meta"))))
    assert scored.by.hidden.shape == (3, 4, 4) and list(ahead._kept) == [6]
    ahead.begin(replace(rollouts, rows=torch.arange(20, 24)))  # an error ended the step before row 6 was scored
    assert sorted(ahead._kept) == [20, 21, 22, 23]


def test_all_processes_run_as_many_forward_passes() -> None:
    """With shards a pass may be twice as large, and a process with fewer of them divides its rows, or runs without."""
    ids = torch.ones(4, 2, dtype=torch.long)
    rollouts, teacher = Rollouts(ids, ids, ids, ids, ids, rows=torch.arange(4)), OnMeta()
    ahead = Ahead(teacher, placed(most=3), rows=2, tokens=None, on_host=False)
    ahead.begin(rollouts)
    assert teacher.rows == [1, 1, 2] and sorted(ahead._kept) == [0, 1, 2, 3]
    assert sum(head() is not None for head in teacher.heads) == 1
    none = Rollouts(ids[:0], ids[:0], ids[:0], ids[:0], ids[:0], rows=torch.arange(0))
    ahead.begin(none)
    assert teacher.rows[3:] == [0, 0, 0]
    assert ahead.score(none, States(torch.zeros(0, 2, 4), Head(torch.zeros(7, 4)))) == []

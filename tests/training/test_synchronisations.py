"""How often a micro-batch waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from synchronisations import of_a_micro_batch, of_a_step, recorded_synchronisations

PROMPTS = [f"{'so ' * (n % 3)}{n} + {n} =" for n in range(12)]
HINTS = [f"Hint! {prompt}" for prompt in PROMPTS]

COUNTED = "vopd.estimators.loss._rows: tolist"
"""Once for each loss: how many tokens count, from which the chunks are cut; whether ids are valid comes with it."""

ROUTES = "vopd.teachers.routed._rows_of: tolist"
"""Whose rows are whose: kept on the host, so this waits for nothing."""

SAMPLES = "vopd.training.monitoring.samples.offer: tolist"
"""Which rows samples.jsonl has: kept on the host, so this waits for nothing."""

PACKED = "transformers.masking_utils.find_packed_sequence_indices: _local_scalar_dense"
"""Not ours: transformers looks whether the position ids are those of packed sequences, in every forward pass."""

NUMBERS = "vopd.teachers.ahead.score: tolist"
"""Which rows these are: on the host too."""


PER_STEP = {
    "vopd.training.trainer._check_drawn: _local_scalar_dense": 1,  # before anybody trains on a token that is none
    "vopd.training.trainer.rollout_done: _local_scalar_dense": 1,  # tokens, for tokens_per_second
    "vopd.teachers.texts.lengths: tolist": 1,  # from which the micro-batches are cut
    "vopd.teachers.texts.cut: lift_fresh": 1,  # their rows
    "vopd.training.monitoring.finite.check: tolist": 1,  # before the optimizer step
    "vopd.training.monitoring.metrics.reduce: tolist": 1,  # all metrics at once
    "vopd.training.monitoring.metrics.add_completion_metrics: lift_fresh": 1,
    "vopd.training.monitoring.metrics.add_total: lift_fresh": 6,
    # Two completions for samples.jsonl.
    "vopd.training.monitoring.samples._record: tolist": 10,
    "vopd.training.monitoring.samples._record: index": 2,
    "vopd.training.monitoring.samples._record: _local_scalar_dense": 2,
    "transformers.trainer._maybe_log_save_evaluate: _local_scalar_dense": 2,
    "trl.trainer.distillation_trainer._generate: _local_scalar_dense": 8,
    "trl.trainer.distillation_trainer._generate: lift_fresh": 3,
    "trl.trainer.distillation_trainer._generate: index": 1,
}
PER_MICRO_BATCH = {COUNTED: 1, SAMPLES: 1, PACKED: 2}
TO_TENSORS = "trl.trainer.distillation_trainer.<listcomp>: lift_fresh"
"""A tensor of each prompt and completion: made on the host and padded there, so this waits for nothing."""


def hinted(source: str | None = None) -> dict[str, Any]:
    data = Dataset.from_dict({"prompt": PROMPTS, "hint": HINTS})
    return {"train_dataset": data} | ({} if source is None else {"teacher_model": source})


def lengths(completion_ids: list[list[int]]) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"metrics_every": 0},
        {"estimator": "vopd_sparse", "loss_top_k": 4},
        {"estimator": "vopd_teacher_top_k", "loss_top_k": 4},
        {"estimator": "full_rkl"},
        {"num_generations": 2, "trainer": {"reward_funcs": lengths}},
        {"teacher_prompt_column": "hint", "teacher_offload": True, "trainer": hinted()},
        {"teacher_prompt_column": "hint", "trainer": hinted("self:average")},
    ],
    ids=["vopd", "unmeasured", "sparse", "teacher_top_k", "full_rkl", "rewards", "offloaded", "average"],
)
def test_a_micro_batch_waits_once(settings: dict[str, Any], make_trainer: Callable[..., Any]) -> None:
    found = of_a_micro_batch(make_trainer(prompts=PROMPTS, gradient_accumulation_steps=4, max_steps=1, **settings))
    assert found.pop(PACKED) == 2 and found.pop(SAMPLES)
    assert found == {COUNTED: 1}


def test_of_several_teachers_it_waits_once_for_each(
    make_trainer: Callable[..., Any], tiny_teacher_dir: Path, tiny_student_dir: Path
) -> None:
    data = Dataset.from_dict({"prompt": PROMPTS, "teacher": ["a", "b", "c"] * 4})
    teachers = {"a": str(tiny_teacher_dir), "b": str(tiny_student_dir), "c": str(tiny_teacher_dir)}
    given = {"teacher_model": None, "teachers": teachers, "train_dataset": data}
    found = of_a_micro_batch(
        make_trainer(per_device_train_batch_size=6, gradient_accumulation_steps=2, max_steps=1, trainer=given)
    )
    assert found.pop(PACKED) >= 2 and found.pop(ROUTES) and found.pop(SAMPLES)
    assert found == {COUNTED: 3}


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_a_step_waits_this_often(micro_batches: int, make_trainer: Callable[..., Any]) -> None:
    """From the end of sampling to the end of the log; only what is named grows with the number of micro-batches."""
    found = of_a_step(make_trainer(prompts=PROMPTS * 2, gradient_accumulation_steps=micro_batches, max_steps=2))
    assert found.pop(TO_TENSORS)
    assert found == PER_STEP | {kind: micro_batches * count for kind, count in PER_MICRO_BATCH.items()}


def test_a_batch_scored_as_a_whole_is_not_waited_for_again(make_trainer: Callable[..., Any]) -> None:
    found = of_a_micro_batch(
        make_trainer(prompts=PROMPTS, gradient_accumulation_steps=4, max_steps=1, teacher_scoring="step_on_host")
    )
    assert found.pop(PACKED) and found.pop(NUMBERS) and found.pop(SAMPLES)
    assert found == {COUNTED: 1}


def test_what_waits_is_seen() -> None:
    values, mask = torch.arange(4.0), torch.tensor([True, False, True, False])
    waits: list[Callable[[], Any]] = [
        lambda: values.sum().item(),
        lambda: bool(mask.any()),
        lambda: mask.nonzero(),
        lambda: values[mask],
        lambda: values.clone().index_put_((mask,), torch.ones(())),
        lambda: values.masked_select(mask),
        lambda: torch.equal(values, values),
        lambda: values.unique(),
        lambda: values.tolist(),
        lambda: values.numpy(),
        lambda: values.repeat_interleave(torch.tensor(2).expand(4)),
        lambda: torch.tensor([1.0]),
    ]
    for number, wait in enumerate(waits):
        with recorded_synchronisations() as found:
            wait()
        assert found, number
    with recorded_synchronisations() as found:
        _ = values[torch.arange(2)] + values.masked_fill(mask, 0).sum(), mask.nonzero_static(size=2), torch.zeros(3)
        _ = torch.where(mask, 1.0, 0.0), values[1], torch.as_tensor(values, dtype=torch.float64)
    assert not found

"""A resumed run ends where the uninterrupted one does, bit for bit, from every step it can be resumed at."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

EPOCHS = 2
STEPS_PER_EPOCH = 3
ACCUMULATION = 2
PROMPTS = [f"{a} + {a} =" for a in range(2 * ACCUMULATION * STEPS_PER_EPOCH + 1)]  # one too many for whole batches


def run(make_trainer: Callable[..., Any], folder: Path, resume_from: Path | None = None) -> dict[str, torch.Tensor]:
    trainer = make_trainer(
        output_dir=str(folder),
        prompts=PROMPTS,
        max_steps=-1,
        num_train_epochs=EPOCHS,
        gradient_accumulation_steps=ACCUMULATION,
        max_completion_length=3,
        save_strategy="steps",
        save_steps=1,
        samples_per_step=2 * ACCUMULATION,
    )
    trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def numbers(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("seconds/", "tokens_per_second", "step_time")
    return [{name: value for name, value in record.items() if not name.startswith(clock)} for record in records]


def test_resume_at_every_step_ends_with_the_same_bits(make_trainer: Callable[..., Any], tmp_path: Path) -> None:
    whole = run(make_trainer, tmp_path / "whole")
    records = numbers(tmp_path / "whole")
    samples = (tmp_path / "whole" / "samples.jsonl").read_text()
    assert [record["step"] for record in records] == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
    for step in range(1, EPOCHS * STEPS_PER_EPOCH):
        folder = tmp_path / f"from-{step}"
        # The whole run folder, as a crash after the last step would leave it: later records must be cut back.
        shutil.copytree(tmp_path / "whole", folder)
        resumed = run(make_trainer, folder, folder / f"checkpoint-{step}")
        differing = [name for name in whole if not torch.equal(whole[name], resumed[name])]
        assert not differing, f"resumed at step {step}: {differing} differ"
        assert numbers(folder) == records
        assert (folder / "samples.jsonl").read_text() == samples
        assert (folder / f"checkpoint-{step}" / "model.safetensors").exists()
        shutil.rmtree(folder)


def test_epochs_have_different_orders(make_trainer: Callable[..., Any], tmp_path: Path) -> None:
    """Guards the test above: with one order in all epochs it would pass without ``set_epoch``."""
    run(make_trainer, tmp_path / "whole")
    prompts: dict[int, set[str]] = {}
    for line in (tmp_path / "whole" / "samples.jsonl").read_text().splitlines():
        sample = json.loads(line)
        prompts.setdefault(sample["step"], set()).add(sample["prompt"])
    steps = [prompts[step] for step in sorted(prompts)]
    assert all(len(step) == 2 * ACCUMULATION for step in steps)
    assert steps[:STEPS_PER_EPOCH] != steps[STEPS_PER_EPOCH : 2 * STEPS_PER_EPOCH]


def test_a_run_that_was_finished_takes_no_step_more(make_trainer: Callable[..., Any], tmp_path: Path) -> None:
    """Killed after its last checkpoint, in the middle of an epoch."""
    finished = make_trainer(max_steps=2, save_strategy="steps", save_steps=2)
    finished.train()
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    resumed = make_trainer(max_steps=2, save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 2 and (tmp_path / "run" / "metrics.jsonl").read_text() == metrics
    weights = finished.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in resumed.model.state_dict().items())


def test_checkpoints_hold_safetensors(make_trainer: Callable[..., Any], tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    saved = load_file(tmp_path / "run" / "checkpoint-1" / "model.safetensors")
    assert all(torch.equal(saved[name], trainer.model.state_dict()[name]) for name in saved)


pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning")

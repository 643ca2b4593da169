"""Which run can go on from which checkpoint, by launcher, processes and prompts of a step."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from messages import says, told
from vopd.errors import ConfigurationError
from vopd.training.saving.checkpoints import MANIFEST
from vopd.training.saving.origin import Origin, mismatch

ALONE, SHARDED = "one process", "FSDP2 with SHARDED_STATE_DICT"


@pytest.mark.parametrize(
    ("saved", "now", "facts"),
    [
        (Origin(1, ALONE, 8), Origin(1, ALONE, 8), None),
        (Origin(2, "DDP", 8), Origin(1, ALONE, 8), None),
        (Origin(1, ALONE, 8), Origin(4, "DDP", 8), None),
        (Origin(2, "DDP", 8), Origin(2, "DDP", 16), None),  # a batch that was changed on purpose
        (
            Origin(2, "DDP", 8),
            Origin(1, ALONE, 4),
            "8 prompts ... processes: 2 ... processes: 1 ... gradient_accumulation_steps=6",
        ),
        (
            Origin(2, "DDP", 8),
            Origin(4, "DDP", 16),
            "processes: 2 ... processes: 4 ... run has 16 ... give 8",
        ),  # 1.5 micro-batches
        (Origin(2, "FSDP2", 8), Origin(8, "FSDP2", 8), None),
        (Origin(2, "FSDP2", 8), Origin(8, "FSDP2", 16), "processes: 2 ... processes: 8 ... run has 16 ... give 8"),
        (Origin(2, SHARDED, 8), Origin(4, SHARDED, 8), None),
        (Origin(2, SHARDED, 8), Origin(2, "FSDP2", 8), f"{SHARDED} again"),
        (Origin(2, "DDP", 8), Origin(2, "FSDP2", 8), "DDP again ... FSDP2 cannot read"),
        (Origin(2, "FSDP2", 8), Origin(1, ALONE, 8), "FSDP2 again ... one process cannot read"),
        (Origin(2, "DeepSpeed ZeRO-2", 8), Origin(2, "DeepSpeed ZeRO-2", 8), None),
        (
            Origin(2, "DeepSpeed ZeRO-2", 8),
            Origin(4, "DeepSpeed ZeRO-2", 8),
            "over 2 processes ... are 4 ... with 2 processes again",
        ),
        (Origin(2, "DeepSpeed ZeRO-3", 8), Origin(2, "DeepSpeed ZeRO-2", 8), "DeepSpeed ZeRO-3 again"),
        (Origin(2, "DeepSpeed ZeRO-3", 8), Origin(2, "DDP", 8), "DeepSpeed ZeRO-3 again"),
        (Origin(2, "DDP", 8), Origin(2, "DeepSpeed ZeRO-3", 8), "DDP again"),
    ],
)
def test_who_can_go_on(saved: Origin, now: Origin, facts: str | None) -> None:
    problem = mismatch(saved, now, accumulation=3)
    assert (problem is None) == (facts is None)
    if problem is not None and facts is not None:
        assert told(facts, problem) and "\n" not in problem


def save_as(folder: Path, **facts: Any) -> None:
    """Let the checkpoint say that it was made otherwise; nothing but its manifest is changed."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["origin"] |= facts
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture
def saved(make_trainer: Callable[..., Any], tmp_path: Path) -> Path:
    """A checkpoint of step 1."""
    trainer = make_trainer(max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    folder = tmp_path / "run" / "checkpoint-1"
    told_by_manifest = json.loads((folder / MANIFEST).read_text())["origin"]
    assert told_by_manifest == {"processes": 1, "launcher": ALONE, "step_prompts": 2} == asdict(Origin.of(trainer))
    return folder


def test_other_processes_draw_anew_and_are_told_once(
    saved: Path, make_trainer: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    save_as(saved, processes=2, launcher="DDP")
    with caplog.at_level(logging.INFO, logger="vopd"):
        make_trainer(max_steps=2).train(resume_from_checkpoint=True)
    assert caplog.text.count("checkpoint-1 was saved with another number of processes (2, now 1)") == 1
    assert torch.initial_seed() == 42 + 1  # not that of the run's first step
    caplog.clear()
    save_as(saved, processes=1, launcher=ALONE)
    make_trainer(max_steps=2).train(resume_from_checkpoint=True)
    assert "random states" not in caplog.text
    assert torch.initial_seed() == 42  # as saved


def test_files_of_another_launcher_are_refused_before_they_are_read(
    saved: Path, make_trainer: Callable[..., Any]
) -> None:
    save_as(saved, processes=2, launcher="DeepSpeed ZeRO-2")
    with pytest.raises(ConfigurationError, match=says(f"{saved} ... DeepSpeed ZeRO-2 again ... one process")):
        make_trainer(max_steps=2).train(resume_from_checkpoint=True)


def test_checkpoints_of_other_versions_say_nothing(tmp_path: Path) -> None:
    manifest = tmp_path / MANIFEST
    for text in ('{"step": 1}', '{"origin": {"processes": 2}}'):
        manifest.write_text(text)
        assert Origin.read(manifest) is None
    known = {"processes": 2, "launcher": "DDP", "step_prompts": 8}
    manifest.write_text(json.dumps({"origin": {**known, "later": 1}}))
    assert Origin.read(manifest) == Origin(**known)


pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning")

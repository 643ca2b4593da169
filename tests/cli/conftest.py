"""Prompts and a call of `vopd train` on the two tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vopd import cli


@pytest.fixture(autouse=True)
def figures(undrawn: None) -> None:
    """Reports come without PNG files."""


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Sixteen problems with answers."""
    path = tmp_path / "prompts.jsonl"
    rows = [{"problem": f"What is {n} + 3?", "answer": str(n + 3)} for n in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def train(tiny_student_dir: Path, tiny_teacher_dir: Path, prompts: Path, tmp_path: Path) -> Callable[..., int]:
    """train("--key", "value", ...): `vopd train` on the tiny models with a run of two steps, or another command."""

    def call(*more: str, name: str = "first", command: str = "train") -> int:
        return cli.main([
            command, "--model", str(tiny_student_dir), "--teacher_model", str(tiny_teacher_dir),
            "--dataset", str(prompts), "--output_dir", str(tmp_path / "runs"), "--run_name", name,
            "--max_completion_length", "4", "--per_device_train_batch_size", "2", "--max_steps", "2",
            "--learning_rate", "1e-2", "--use_cpu", "true", *more,
        ])  # fmt: skip

    return call


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Where the run of `train` goes."""
    return tmp_path / "runs" / "first"

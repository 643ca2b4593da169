"""A trainer on the two tiny models, ready to run in a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROMPTS = [f"What is {a} + {b}?" for a in range(3, 7) for b in range(2, 6)]


@pytest.fixture
def make_trainer(tiny_student_dir: Path, tiny_teacher_dir: Path, tmp_path: Path) -> Callable[..., Any]:
    """make_trainer(model=..., prompts=..., trainer={...}, **config): a VOPDTrainer with small defaults."""
    from datasets import Dataset

    from vopd.training import VOPDConfig, VOPDTrainer

    def make(*, model: Any = None, prompts: Any = None, trainer: dict[str, Any] | None = None, **config: Any) -> Any:
        small = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 2,
            "max_completion_length": 4,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "use_cpu": True,
        }
        named = {
            "model": str(tiny_student_dir) if model is None else model,
            "teacher_model": str(tiny_teacher_dir),
            "train_dataset": Dataset.from_dict({"prompt": PROMPTS if prompts is None else prompts}),
        }
        return VOPDTrainer(args=VOPDConfig(**(small | config)), **(named | (trainer or {})))

    return make

"""A trainer on the two tiny models, ready to run in a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

PROMPTS = [f"What is {a} + {b}?" for a in range(3, 7) for b in range(2, 6)]


@pytest.fixture
def make_trainer(tiny_student_dir: Path, tiny_teacher_dir: Path, tmp_path: Path) -> Callable[..., Any]:
    """make_trainer(model=..., prompts=..., trainer={...}, **config): a VOPDTrainer with small defaults."""
    from datasets import Dataset

    from vopd.training import VOPDConfig, VOPDTrainer

    def make(*, model: Any = None, prompts: Any = None, trainer: dict[str, Any] | None = None, **config: Any) -> Any:
        small = {
            "output_dir": str(tmp_path / "run"),
            "estimator": "vopd",  # whose every metric is sampled
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


@pytest.fixture
def recorded_completions() -> Callable[[list[int]], list[int]]:
    """Prompt ids -> completion ids, the same every time."""
    return recorded


class GradientProbe:
    """Callback: keeps a copy of the accumulated gradient of every optimizer step, before it is taken."""

    def __new__(cls) -> Any:
        from transformers import TrainerCallback

        class Probe(TrainerCallback):
            def __init__(self) -> None:
                self.gradients: list[dict[str, torch.Tensor]] = []

            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
                named = model.named_parameters()
                self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})

        return Probe()


@pytest.fixture
def take_step() -> Callable[..., Any]:
    """take_step(trainer, completions=None): trains, and returns the gradient of the first step by parameter name.

    `completions` (a function from prompt ids to completion ids) replaces the rollout.
    """

    def take(trainer: Any, completions: Callable[[list[int]], list[int]] | None = None) -> dict[str, torch.Tensor]:
        if completions is not None:
            trainer._generate_single_turn = lambda prompts, *rest, **named: [completions(ids) for ids in prompts]
        probe = GradientProbe()
        trainer.add_callback(probe)
        trainer.train()
        return probe.gradients[0]

    return take


def recorded(prompt_ids: list[int]) -> list[int]:
    """A fixed completion of 1 to 7 tokens for each prompt, most of them with the end token 1."""
    length = 1 + sum(prompt_ids) % 7
    ids = [2 + (17 * sum(prompt_ids) + 29 * place) % 298 for place in range(length)]
    return ids if length == 4 else [*ids[:-1], 1]

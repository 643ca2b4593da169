"""A teacher that scores a generated batch as a whole: the same training with fewer forward passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from vopd.models import States
from vopd.teachers import Rollouts
from vopd.teachers.ahead import Ahead
from vopd.teachers.local import Masters

PROMPTS = [f"{'so ' * (a % 3)}{a} + {b} =" for a in range(3, 7) for b in range(2, 6)]
HINTS = [f"{'Hint! ' * (place % 4)}{prompt}" for place, prompt in enumerate(PROMPTS)]

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


@pytest.mark.parametrize("name", ["offloaded", "several", "self:base", "self:average"])
def test_a_batch_scored_as_a_whole_trains_the_same(
    name: str, make_trainer: Make, recorded_completions: Any, tiny_teacher_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lent_to, copies = Masters.lent_to, []
    monkeypatch.setattr(Masters, "lent_to", lambda *given: (copies.append(given), lent_to(*given))[1])
    found = []
    for scoring in ("micro_batch", "step", "step_on_host"):
        copies.clear()
        given = teachers(name, tiny_teacher_dir)
        trainer = make_trainer(
            teacher_scoring=scoring,
            teacher_prompt_column="hint",
            teacher_offload=name == "offloaded",
            gradient_accumulation_steps=4,
            optim="sgd",
            max_grad_norm=0,
            eval_strategy="steps",
            eval_steps=2,
            per_device_eval_batch_size=3,
            trainer={**given, "eval_dataset": given["train_dataset"].select(range(5))},
        )
        frozen_states, passes = trainer.placement.frozen_states, []
        trainer.placement.frozen_states = lambda *given: (passes.append(given), frozen_states(*given))[1]
        weights, alone = trained(trainer, recorded_completions), scoring == "micro_batch"
        found.append((weights, logged(trainer)))
        if name == "offloaded":  # two steps of four micro-batches, and an evaluation of two batches
            assert len(copies) == (2 * 4 + 2 if alone else 2 + 2)
            assert len(passes) == (2 * 4 + 2 if alone else 2 * 2 + 2)
        if not alone:
            parts = [trainer.teacher] if name != "several" else [part for part, _ in trainer.teacher._parts]
            assert all(isinstance(part, Ahead) and not part._kept for part in parts)
    (weights, logs), *others = found
    assert any("eval_reverse_kl" in record for record in logs) and len(weights) == 2
    for own, own_logs in others:
        for step, before in zip(own, weights, strict=True):
            for key, value in before.items():
                torch.testing.assert_close(step[key], value, rtol=0, atol=1e-6)
        for record, expected in zip(own_logs, logs, strict=True):
            assert record == pytest.approx(expected, rel=1e-5, abs=1e-6)

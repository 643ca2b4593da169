"""One rank of runs on the CPU, started by test_distributed.py: distributed_run.py STUDENT TEACHER OUT BATCH_SIZE ONE.

ONE holds the same runs by one process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

from vopd import VOPDConfig, VOPDTrainer
from vopd.errors import VOPDError
from vopd.run.exit_codes import leave

PROMPTS = [f"{'so ' * (a % 3)}{a} + {a} =" for a in range(12)]
MIDDLE_OF_EPOCH_TWO = 4
RECORDED: dict[str, dict[str, Any]] = {
    "by_tokens": {},
    "by_constant": {"normalizer": 8.0},
    "lora": {"lora": True},
    "budget": {"tokens": 24},  # in most steps the processes need different numbers of micro-batches
    "dropped": {"tokens": 24, "drop": True},
}
GROUP = 2


def recorded(prompt_ids: list[int]) -> list[int]:
    """A fixed completion of 1 to 4 tokens for each prompt."""
    length = 1 + sum(prompt_ids) % 4
    return [2 + (17 * sum(prompt_ids) + 29 * place) % 298 for place in range(length)]


def make(
    student: Any,
    teacher: str,
    out: Path,
    batch_size: int,
    normalizer: float | None = None,
    lora: bool = False,
    drop: bool = False,
    tokens: int | None = None,
    **more: Any,
) -> Any:
    adapters = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False) if lora else None
    args = VOPDConfig(
        output_dir=str(out),
        estimator="vopd",
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        max_completion_length=4,
        learning_rate=1e-2,
        loss_normalizer=normalizer,
        max_tokens_per_micro_batch=tokens,
        save_strategy="steps",
        save_steps=1,
        use_cpu=True,
        eval_benchmarks=["reasoning_gym:chain_sum"],  # three batches: two processes have not equally many
        eval_benchmark_steps=2,
        eval_benchmark_samples=2,
        eval_benchmark_limit=5,
        per_device_eval_batch_size=4,
        eval_strategy="steps",  # on five prompts: for two processes the last batches are filled up
        eval_steps=2,
        ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
        ddp_find_unused_parameters=drop,
        ddp_bucket_cap_mb=1,
        ddp_broadcast_buffers=False,
        ddp_timeout=600,
        num_generations=GROUP if more else 1,
        teacher_drop_limit=1.0,
        # One setting alone and another in two processes: the same training.
        teacher_scoring="step" if normalizer is not None and "WORLD_SIZE" in os.environ else "micro_batch",
    )
    prompts, few = Dataset.from_dict({"prompt": PROMPTS}), Dataset.from_dict({"prompt": PROMPTS[:5]})
    trainer = VOPDTrainer(student, teacher, args, prompts, few, peft_config=adapters, **more)
    if drop:
        trainer.teacher.settle = some_without_scores
    return trainer


def some_without_scores(rollouts: Any) -> torch.Tensor:
    """As a teacher that drops completions: which ones their text alone decides, so ranks lose different numbers."""
    return (rollouts.completion_ids * rollouts.completion_mask).sum(1) % 5 != 0


def by_ids(completion_ids: list[list[int]]) -> list[float]:
    """A reward that tells any two completions apart."""
    return [(sum(ids) % 101) / 25 for ids in completion_ids]


def train_rewarded(trainer: Any) -> None:
    """The same with groups, whose completions differ and do not depend on how many processes share them."""

    def rollout(prompts: list[list[int]], *rest: Any, **named: Any) -> list[list[int]]:
        return [[*recorded(ids), 2 + turn % GROUP] for turn, ids in enumerate(prompts)]

    trainer._generate_single_turn = rollout
    trainer.train()
    trainer.save_model()


def train_recorded(trainer: Any, checkpoint: str | None = None) -> None:
    """A run whose rollouts do not depend on how many processes share them."""
    trainer._generate_single_turn = lambda prompts, *rest, **named: [recorded(ids) for ids in prompts]
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    if trainer.is_world_process_zero():
        torch.save(gradients.seen, Path(trainer.args.output_dir, "gradients.pt"))


class Gradients(TrainerCallback):
    """Keeps the gradient of every step, over all micro-batches and processes."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        named = model.named_parameters()
        self.seen.append({name: p.grad.clone() for name, p in named if p.grad is not None})


def refusal(action: Callable[[], Any]) -> str:
    """What an error says of it."""
    try:
        action()
    except VOPDError as error:
        return str(error)
    return "not refused"


def main(student: str, teacher: str, out: str, batch_size: str, one: str) -> None:
    torch.set_num_threads(1)
    folder = Path(out)

    def trainer(name: str) -> Any:
        return make(student, teacher, folder / name, int(batch_size))

    for name, settings in RECORDED.items():
        train_recorded(make(student, teacher, folder / name, int(batch_size), **settings))
    train_rewarded(make(student, teacher, folder / "rewarded", int(batch_size), reward_funcs=by_ids))
    whole = trainer("whole")
    whole.train()
    whole.save_model()
    resumed = trainer("resumed")
    resumed.train(resume_from_checkpoint=str(folder / "whole" / f"checkpoint-{MIDDLE_OF_EPOCH_TWO}"))
    resumed.save_model()

    rank = resumed.args.process_index
    checkpoint = Path(one, "by_tokens", f"checkpoint-{MIDDLE_OF_EPOCH_TWO}")
    train_recorded(trainer("more"), str(checkpoint))
    (folder / f"seed-{rank}").write_text(str(torch.initial_seed()))
    larger = make(student, teacher, folder / "larger", 2 * int(batch_size))
    (folder / f"refused-{rank}").write_text(refusal(lambda: larger.train(resume_from_checkpoint=str(checkpoint))))

    poisoned = trainer("poisoned")
    if rank == 1:
        poisoned.teacher_model.get_output_embeddings().weight.data.fill_(float("nan"))
    (folder / f"stopped-{rank}").write_text(refusal(poisoned.train))

    impossible, drawn = trainer("impossible"), 303 if rank == 1 else 5
    impossible._generate_single_turn = lambda prompts, *rest, **named: [[drawn, 1] for _ in prompts]
    (folder / f"impossible-{rank}").write_text(refusal(impossible.train))

    if not torch.cuda.is_available():  # without use_cpu accelerate lets them talk and combines no gradient
        apart = refusal(lambda: VOPDConfig(output_dir=str(folder / "apart"), ddp_backend="gloo"))
        (folder / f"apart-{rank}").write_text(apart)


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)

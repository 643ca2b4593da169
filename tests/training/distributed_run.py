"""One rank of runs on the CPU, started by test_distributed.py: distributed_run.py STUDENT TEACHER OUT BATCH_SIZE."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from vopd import VOPDConfig, VOPDTrainer
from vopd.errors import NonFiniteError

PROMPTS = [f"{'so ' * (a % 3)}{a} + {a} =" for a in range(12)]
MIDDLE_OF_EPOCH_TWO = 4


def recorded(prompt_ids: list[int]) -> list[int]:
    """A fixed completion of 1 to 4 tokens for each prompt."""
    length = 1 + sum(prompt_ids) % 4
    return [2 + (17 * sum(prompt_ids) + 29 * place) % 298 for place in range(length)]


def make(student: str, teacher: str, out: Path, batch_size: int) -> Any:
    args = VOPDConfig(
        output_dir=str(out),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        max_completion_length=4,
        learning_rate=1e-2,
        save_strategy="steps",
        save_steps=1,
        use_cpu=True,
        ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
        ddp_find_unused_parameters=False,
    )
    return VOPDTrainer(student, teacher, args, Dataset.from_dict({"prompt": PROMPTS}))


def train_recorded(trainer: Any) -> None:
    """A run whose rollouts do not depend on how many processes share them."""
    trainer._generate_single_turn = lambda prompts, *rest, **named: [recorded(ids) for ids in prompts]
    trainer.train()
    trainer.save_model()


def main(student: str, teacher: str, out: str, batch_size: str) -> None:
    torch.set_num_threads(1)
    folder = Path(out)

    def trainer(name: str) -> Any:
        return make(student, teacher, folder / name, int(batch_size))

    train_recorded(trainer("recorded"))
    whole = trainer("whole")
    whole.train()
    whole.save_model()
    resumed = trainer("resumed")
    resumed.train(resume_from_checkpoint=str(folder / "whole" / f"checkpoint-{MIDDLE_OF_EPOCH_TWO}"))
    resumed.save_model()

    poisoned = trainer("poisoned")
    if poisoned.args.process_index == 1:
        poisoned.teacher_model.get_output_embeddings().weight.data.fill_(float("nan"))
    try:
        poisoned.train()
    except NonFiniteError as error:
        (folder / f"stopped-{poisoned.args.process_index}").write_text(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])

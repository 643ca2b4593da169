"""One rank of runs with several teachers: routed_run.py STUDENT TEACHER OUT BATCH_SIZE (test_routed_processes.py)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from vopd import VOPDConfig, VOPDTrainer

# In steps of four in this order: some have no row of "b" in one of two processes, some in none.
NAMES = ["a", "a", "b", "b", "a", "a", "a", "a", "b", "a", "b", "a"]


def recorded(prompt_ids: list[int]) -> list[int]:
    """A fixed completion of 1 to 4 tokens for each prompt."""
    length = 1 + sum(prompt_ids) % 4
    return [2 + (17 * sum(prompt_ids) + 29 * place) % 298 for place in range(length)]


def make(student: str, teacher: str, out: Path, batch_size: int) -> Any:
    args = VOPDConfig(
        output_dir=str(out),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=2,
        max_steps=3,
        learning_rate=1e-2,
        max_completion_length=4,
        shuffle_dataset=False,
        save_strategy="no",
        use_cpu=True,
        ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
        ddp_find_unused_parameters=False,
    )
    rows = Dataset.from_dict({"prompt": [f"{n} + {n} =" for n in range(12)], "teacher": NAMES})
    teachers = {"a": teacher, "b": student}
    trainer = VOPDTrainer(student, None, args, rows, teachers=teachers)
    trainer._generate_single_turn = lambda prompts, *rest, **named: [recorded(ids) for ids in prompts]
    return trainer


def main(student: str, teacher: str, out: str, batch_size: str) -> None:
    torch.set_num_threads(1)
    folder = Path(out)
    trainer = make(student, teacher, folder / "run", int(batch_size))
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""One rank of a run in which the second one alone draws an id past the vocabulary, started by test_distributed.py:
impossible_draw_run.py STUDENT TEACHER OUT."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from datasets import Dataset

from vopd import VOPDConfig, VOPDTrainer
from vopd.errors import MismatchError


def main(student: str, teacher: str, out: str) -> None:
    torch.set_num_threads(1)
    args = VOPDConfig(
        output_dir=out, max_steps=1, max_completion_length=4, save_strategy="no", use_cpu=True, ddp_backend="gloo",
        per_device_train_batch_size=2, gradient_accumulation_steps=1,
    )  # fmt: skip
    trainer = VOPDTrainer(student, teacher, args, Dataset.from_dict({"prompt": [f"{n} + {n} =" for n in range(12)]}))
    drawn = 303 if args.process_index else 5
    trainer._generate_single_turn = lambda prompts, *rest, **named: [[drawn, 1] for _ in prompts]
    try:
        trainer.train()
    except MismatchError as error:
        Path(out, f"stopped-{args.process_index}").write_text(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])

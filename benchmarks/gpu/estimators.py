"""Distils the teacher of language_pair.py into its student with each estimator: reverse KL and seconds a step.

    python benchmarks/gpu/estimators.py --folder F --json estimators.json

The same prompts, seed and learning rate for all, one seed: the KL tells that training works, not which estimator wins.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from timing import DEVICE
from transformers import TrainerCallback

from vopd import VOPDConfig, VOPDTrainer
from vopd.experiments.measure import held_out_reverse_kl
from vopd.models import load_model, load_tokenizer

ESTIMATORS = ("opd", "vopd", "vopd_optimal", "full_rkl")
STEPS, WARM_UP, COMPLETIONS, TOKENS = 8, 2, 64, 128


class Clock(TrainerCallback):
    """Seconds of every step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter() - self.start)


def prompts(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def train(estimator: str, folder: Path, dry: bool) -> tuple[VOPDTrainer, Clock]:
    """One run."""
    from datasets import Dataset

    clock, completions = Clock(), 4 if dry else COMPLETIONS
    config = VOPDConfig(
        output_dir=str(folder / f"run-{estimator}"), estimator=estimator, max_steps=2 if dry else STEPS, seed=0,
        per_device_train_batch_size=completions // 2, gradient_accumulation_steps=2, learning_rate=1e-4,
        lr_scheduler_type="constant_with_warmup", warmup_steps=2, max_completion_length=8 if dry else TOKENS,
        save_strategy="no", samples_per_step=0,
    )  # fmt: skip
    trainer = VOPDTrainer(
        args=config, model=load_model(folder / "student", dtype="float32"),
        teacher_model=load_model(folder / "teacher", dtype="bfloat16"),
        train_dataset=Dataset.from_list(prompts(folder / "prompts.jsonl")),
        processing_class=load_tokenizer(folder / "student"), callbacks=[clock],
    )  # fmt: skip
    trainer.train()
    return trainer, clock


def main() -> None:
    """All estimators, and the student before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    texts = [row["prompt"] for row in prompts(given.folder / "held_out.jsonl")][: 4 if given.dry_run else 128]
    tokenizer = load_tokenizer(given.folder / "student")
    teacher = load_model(given.folder / "teacher", dtype="bfloat16", device=DEVICE)

    def divergence(student: Any) -> dict[str, float]:
        limit = 8 if given.dry_run else TOKENS
        return asdict(held_out_reverse_kl(student.eval(), teacher, tokenizer, texts, max_new_tokens=limit))

    start = load_model(given.folder / "student", dtype="float32", device=DEVICE)
    found: dict[str, Any] = {"before": divergence(start)}
    del start
    for estimator in ESTIMATORS:
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        trainer, clock = train(estimator, given.folder, given.dry_run)
        logs = [row for row in trainer.state.log_history if "reverse_kl" in row]
        found[estimator] = {
            "seconds_a_step": statistics.median(clock.times[0 if given.dry_run else WARM_UP :]),
            "last_step": {name: value for name, value in logs[-1].items() if isinstance(value, int | float)},
            "reverse_kl_by_step": [row["reverse_kl"] for row in logs],
            "reverse_kl": divergence(trainer.model),
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else None,
        }
        given.json.write_text(json.dumps(found, indent=1))
        print(estimator, {name: found[estimator][name] for name in ("seconds_a_step", "reverse_kl")}, flush=True)
        del trainer


if __name__ == "__main__":
    main()

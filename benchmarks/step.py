"""Whole training steps, side by side: VOPDTrainer against TRL's DistillationTrainer on the embedded pair.

    python benchmarks/step.py

Both sample, score and update with the same settings, and every estimator is compared with TRL's exact reverse KL
(beta = 1). TRL requires heads of equal size, so both models are cut to the length of the tokenizer first. Each
contestant runs in a separate process with one thread, in interleaved rounds. Reported is the median process time of a
step over steps and rounds, because completions differ in length.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

CONTESTANTS = ("trl", "opd", "vopd", "vopd_optimal", "vopd_teacher_top_k", "rao_blackwell_teacher_top_k", "full_rkl")
WARM_UP = 3


def cut_pair(folder: Path) -> None:
    """Save the embedded pair with as many head rows as the tokenizer has entries."""
    from vopd.experiments.pair import embedded_pair
    from vopd.models import load_model, load_tokenizer

    pair = embedded_pair()
    tokenizer = load_tokenizer(pair.student)
    for name, source in (("student", pair.student), ("teacher", pair.teacher)):
        model = load_model(source)
        model.resize_token_embeddings(len(tokenizer))
        model.generation_config.suppress_tokens = None
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def train(contestant: str, folder: Path, steps: int, batch: int) -> list[float]:
    """Process times of the steps of one run."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        times: list[float] = []  # noqa: RUF012

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.start = time.process_time()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.times.append(time.process_time() - self.start)

    clock = Clock()
    make_trainer(contestant, folder, steps, batch, clock).train()
    return clock.times[WARM_UP:]


def make_trainer(contestant: str, folder: Path, steps: int, batch: int, clock: Any) -> Any:
    """A trainer with the settings shared by all contestants."""
    from datasets import Dataset

    from vopd.experiments.pair import pair_problems, prompt_text
    from vopd.models import load_model, load_tokenizer

    prompts = [{"prompt": prompt_text(problem)} for problem in pair_problems("train", steps * batch, seed=0)]
    shared = {
        "output_dir": str(folder / "run"), "max_steps": steps, "per_device_train_batch_size": batch,
        "max_completion_length": 64, "learning_rate": 3e-4, "use_cpu": True, "save_strategy": "no", "seed": 0,
        "bf16": False, "gradient_checkpointing": False, "report_to": "none", "disable_tqdm": True,
        "logging_steps": 1, "disable_dropout": True,
    }  # fmt: skip
    arguments = {
        "model": load_model(folder / "student"),
        "teacher_model": load_model(folder / "teacher"),
        "train_dataset": Dataset.from_list(prompts),
        "processing_class": load_tokenizer(folder / "student"),
        "callbacks": [clock],
    }
    if contestant == "trl":
        from trl import DistillationConfig, DistillationTrainer

        return DistillationTrainer(args=DistillationConfig(**shared, beta=1.0), **arguments)
    from vopd import ESTIMATORS, VOPDConfig, VOPDTrainer

    top_k = 20 if ESTIMATORS[contestant].needs_top_k else None
    return VOPDTrainer(args=VOPDConfig(**shared, estimator=contestant, loss_top_k=top_k), **arguments)


def measure(contestant: str, folder: Path, arguments: argparse.Namespace) -> list[float]:
    """Run ``train`` in a separate process."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", contestant, str(folder)]
    command += ["--steps", str(arguments.steps), "--batch", str(arguments.batch)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Print seconds per step and the ratio to TRL's."""
    arguments = parse()
    if arguments.child:
        contestant, folder = arguments.child
        print(json.dumps(train(contestant, Path(folder), arguments.steps, arguments.batch)))
        return
    times: dict[str, list[float]] = {name: [] for name in arguments.only}
    with tempfile.TemporaryDirectory() as folder:
        cut_pair(Path(folder))
        for _ in range(arguments.rounds):
            for name in arguments.only:
                times[name] += measure(name, Path(folder), arguments)
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = medians.get("trl", next(iter(medians.values())))
    print(f"{'trainer':32}{'s/step':>10}{'x TRL':>8}")
    for name, median in medians.items():
        print(f"{name:32}{median:10.3f}{median / base:8.2f}")


if __name__ == "__main__":
    main()

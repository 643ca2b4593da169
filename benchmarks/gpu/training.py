"""The second run on one GPU: does training work, and what do the estimators give on a pair of language models?

    python benchmarks/gpu/training.py [--results FOLDER] [--dry-run]

Writes gpu-training.json and gpu-training.log. The command line is tried on the embedded pair while a teacher and a
student are trained from scratch on the Python sources of this machine; then this pair is measured, with the GPU to
itself. About 5 minutes on one H100; --dry-run takes tiny models and few steps on any machine.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch
from steps import HERE, ROOT, Record, Step, about, arguments

EMBEDDED = ROOT / "src" / "vopd" / "experiments" / "embedded"
FSDP = ROOT / "configs" / "accelerate" / "fsdp2.yaml"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}


def vopd_train(name: str, folder: Path, steps: int, *more: str) -> list[str]:
    """A run of the embedded pair."""
    return [
        "-m", "vopd", "train", "--model", str(EMBEDDED / "student"), "--teacher_model", str(EMBEDDED / "teacher"),
        "--dataset", str(HERE / "prompts.jsonl"), "--output_dir", str(folder), "--run_name", name,
        "--max_steps", str(steps), "--per_device_train_batch_size", "16", "--learning_rate", "1e-4",
        "--max_completion_length", "56", *more,
    ]  # fmt: skip


def command_line(folder: Path, dry: bool) -> list[list[Step]]:
    """Lanes of runs of the embedded pair: the two backends and resuming; FSDP2; adapters and offloading."""
    gpu, few = torch.cuda.is_available(), ["--max_completion_length", "4"] * dry

    def train(name: str, run: str, steps: int, *more: str) -> Step:
        words = vopd_train(run, folder, 2 if dry else steps, *few, *more)
        return Step(name, 120, words, packages=["trl"], environment=OFFLINE)

    backend = "triton" if gpu else "torch"
    saved = ["--save_steps", "1" if dry else "30"]
    resume = [str(HERE / "resume.py"), "--json", "RESULT", "--run", str(folder / "first"), "--step", saved[1], "--"]
    first = vopd_train("first", folder, 2 if dry else 60, *few, *saved, "--loss_backend", backend)
    lanes = [
        [
            train("train", "first", 60, *saved, "--loss_backend", backend),
            train("train in plain torch", "torch", 60, "--loss_backend", "torch"),
            Step("resume", 60, [*resume, *first], packages=["trl"], environment=OFFLINE),
        ],
        [
            train("LoRA", "lora", 20, "--lora_rank", "8"),
            train("teacher offloaded", "offload", 10, "--teacher_offload", "true"),
            train("bf16 weights", "bf16", 10, "--dtype", "bfloat16"),
        ],
    ]
    if gpu:  # on a CPU accelerate does nothing for FSDP
        launch = ["-m", "accelerate.commands.launch", "--config_file", str(FSDP), "--num_processes", "1"]
        runs = [vopd_train("fsdp", folder, steps, "--save_steps", "3", "--resume", "true") for steps in (3, 6)]
        names = ("FSDP2", "FSDP2 resumed")
        lanes.append([Step(n, 90, [*launch, *r], packages=["trl"], environment=OFFLINE) for n, r in zip(names, runs)])
    return lanes


def language_pair(folder: Path, dry: bool) -> list[list[Step]]:
    """Corpus and tokenizer, then the two models."""
    script, small = str(HERE / "language_pair.py"), ["--dry-run"] * dry

    def step(what: str, seconds: float) -> Step:
        words = [script, what, "--folder", str(folder), "--seconds", str(2 if dry else seconds), "--json", "RESULT"]
        return Step(f"{what} from scratch", seconds + 45, [*words, *small], packages=["transformers"])

    return [[step("corpus", 30)], [step("teacher", 70)], [step("student", 45)]]


def measurements(folder: Path, dry: bool) -> list[Step]:
    """Training and gradient noise of the new pair."""
    words = [str(HERE / "estimators.py"), "--folder", str(folder), "--json", "RESULT"]
    size = ["--contexts", "2", "--resamples", "2"] if dry else ["--contexts", "16", "--resamples", "16"]
    noise = [
        "-m", "vopd", "variance", "--model", str(folder / "student"), "--teacher_model", str(folder / "teacher"),
        "--dataset", str(folder / "prompts.jsonl"), "--output_dir", str(folder), "--run_name", "noise", *size,
        "--estimators", "opd,vopd,vopd_optimal,rao_blackwell_teacher_top_k,full_rkl", "--loss_top_k", "20",
        "--max_completion_length", "8" if dry else "64",
    ]  # fmt: skip
    return [
        Step("noise", 120, noise, packages=["trl"], environment=OFFLINE),
        Step("estimators", 200, [*words, *["--dry-run"] * dry], packages=["trl"], environment=OFFLINE),
    ]


def main() -> None:
    """Run all steps and keep the small results of the runs."""
    given = arguments(__doc__)
    folder = Path(tempfile.mkdtemp(prefix="vopd-gpu-"))
    record = Record(given.results / "gpu-training.json", about("benchmarks/gpu/training.py"))
    corpus, *models = language_pair(folder, given.dry_run)
    runs = command_line(folder, given.dry_run)
    record.run(corpus)
    record.run(*models, *runs)
    record.add("metrics", record_of(folder))
    for step in measurements(folder, given.dry_run):
        record.run([step])
        record.add("metrics", record_of(folder))
    shutil.rmtree(folder)


def record_of(folder: Path) -> dict[str, object]:
    """Metrics of every run by name, and the numbers of the noise."""
    kept = ("reverse_kl", "loss", "grad_norm", "seconds/rollout", "seconds/scoring", "seconds/update", "seconds/step")
    found: dict[str, object] = {}
    for file in sorted(folder.glob("*/metrics.jsonl")):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        steps = [row for row in rows if "reverse_kl" in row]
        found[file.parent.name] = {name: [row.get(name) for row in steps] for name in kept}
    noise = folder / "noise" / "results.json"
    if noise.is_file():
        found["noise"] = json.loads(noise.read_text())
    return {"exit_code": 0, "seconds": 0, "result": found}


if __name__ == "__main__":
    main()

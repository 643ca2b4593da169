"""Whole training steps, side by side: VOPDTrainer against TRL's DistillationTrainer with its exact reverse KL.

    python benchmarks/step.py --json benchmarks/results/step-cpu.json
    python benchmarks/step.py --case embedded

Case "varied": 64 completions in micro-batches of 8, of lengths as they are in practice; random models of 4 layers,
vocabulary 4096, float32. Scoring and update are timed on recorded completions, the same for all contestants. Their
lengths are quantiles of a log-normal distribution (sigma 0.8, mean 0.3 of the maximum), cut at the maximum of 512.
Whole steps sample their own: a bias in the student's head gives EOS the probability 1 / (0.3 x 512) at every token, so
that lengths are geometric. No sampler is changed, and the lengths are about as varied: mean 148 and 147, standard
deviation over mean 0.90 and 0.79, after the cut.
"vopd as it was" runs the sources of the commit before micro-batches of like length, from the history of this checkout:
it pads every micro-batch to the longest completion of the step, as TRL does.

Case "embedded": whole steps of the pair of `vopd demo`, with the demo's options. TRL requires heads of equal size, so
both models are cut to the length of the tokenizer.

Each contestant runs in a process of its own with one thread, in interleaved rounds. Reported are medians over steps and
rounds after a warm-up: process time of a step, from the log of one to the log of the next, and sampled tokens per
second; and the peak memory of the process.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

TRL, BEFORE = "trl", "vopd as it was"
COMMIT_BEFORE = "e0cd288"
CONTESTANTS = {
    "varied": (TRL, BEFORE, "vopd"),
    "embedded": (TRL, "opd", "vopd", "vopd_optimal", "rao_blackwell_teacher_top_k", "full_rkl"),
}
UPDATE, WHOLE = "scoring and update", "whole step"
PARTS = {"varied": (UPDATE, WHOLE), "embedded": (WHOLE,)}
WARM_UP = {"varied": 1, "embedded": 3}
STEPS = {"varied": 3, "embedded": 20}
SIGMA, MEAN_SHARE = 0.8, 0.3


@dataclass(frozen=True)
class Size:
    """Of the case of varied lengths; the teacher is twice as wide."""

    completions: int = 64
    micro_batch: int = 8
    longest: int = 512
    vocabulary: int = 4096
    width: int = 128
    layers: int = 4


DRY = Size(completions=8, micro_batch=2, longest=24, vocabulary=64, width=16, layers=1)


@dataclass(frozen=True)
class Job:
    """What one process measures."""

    case: str
    part: str
    contestant: str
    steps: int
    dry: bool = False


@dataclass(frozen=True)
class Measured:
    """Process seconds and sampled tokens of each step, and the peak memory of the process."""

    seconds: list[float]
    tokens: list[int]
    peak_bytes: int


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    contestant: str
    seconds: float
    tokens_per_second: float
    peak_bytes: int


@dataclass(frozen=True)
class Setup:
    """Models, prompts and options of a case; `recorded`: the completion of every prompt, if none is sampled."""

    student: Any
    teacher: Any
    tokenizer: Any
    prompts: list[str]
    options: dict[str, Any]
    recorded: dict[tuple[int, ...], list[int]] | None = None


def varied(job: Job, folder: Path, size: Size) -> Setup:
    """Random models whose student ends a completion at every token with the same probability."""
    tokenizer = word_tokenizer(size.vocabulary)
    generator = torch.Generator().manual_seed(0)
    mean = MEAN_SHARE * size.longest

    def words(count: int) -> list[int]:
        return torch.randint(2, size.vocabulary, (count,), generator=generator).tolist()

    prompts = [words(16 + index % 32) for index in range(size.completions)]
    normal = torch.special.ndtri((torch.arange(size.completions) + 0.5) / size.completions)
    lengths = (math.log(mean) - SIGMA**2 / 2 + SIGMA * normal).exp().round().clamp(1, size.longest).int().tolist()
    completions = [[*words(length - 1), tokenizer.eos_token_id] for length in lengths]
    options = {
        "output_dir": str(folder), "per_device_train_batch_size": size.micro_batch,
        "gradient_accumulation_steps": size.completions // size.micro_batch, "max_completion_length": size.longest,
        "learning_rate": 1e-6, "max_steps": job.steps, "save_strategy": "no", "use_cpu": True, "seed": 0,
    }  # fmt: skip
    return Setup(
        random_model(size, size.width, tokenizer.eos_token_id, mean),
        random_model(size, 2 * size.width, tokenizer.eos_token_id, mean),
        tokenizer,
        tokenizer.batch_decode(prompts),
        options,
        {tuple(ids): found for ids, found in zip(prompts, completions)} if job.part == UPDATE else None,
    )


def word_tokenizer(vocabulary: int) -> Any:
    """A tokenizer with one word per id."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    names = ["<eos>", "<pad>", *(f"w{index}" for index in range(2, vocabulary))]
    tokenizer = Tokenizer(WordLevel({name: index for index, name in enumerate(names)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


def random_model(size: Size, width: int, eos: int, mean: float) -> Any:
    """A Llama model with random weights, whose logits are near 0 but for the bias of EOS."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(width)
    config = LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=size.layers,
        num_attention_heads=4, max_position_embeddings=2 * size.longest + 64, bos_token_id=None, eos_token_id=eos,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    head = torch.nn.Linear(width, size.vocabulary)
    head.weight = model.lm_head.weight
    with torch.no_grad():
        head.bias.zero_()
        head.bias[eos] = math.log((size.vocabulary - 1) / (mean - 1))
    model.lm_head = head
    return model


def embedded(job: Job, folder: Path) -> Setup:
    """The pair of `vopd demo`, with its prompts and options."""
    from vopd.estimators.catalogue import find_estimators
    from vopd.experiments.compare import EMBEDDED_RATE, Grid
    from vopd.experiments.demo import demo_runs
    from vopd.experiments.grid import options_of
    from vopd.models import load_model, load_tokenizer

    estimators = find_estimators(["full_rkl" if job.contestant == TRL else job.contestant])
    [run], measurement = demo_runs(Grid(estimators, (0,), (EMBEDDED_RATE,)), folder, max(5, job.steps), problems=4)
    options = options_of(run, folder) | {"max_steps": job.steps, "save_strategy": "no"}
    tokenizer = load_tokenizer(measurement.student)
    models = [load_model(source) for source in (measurement.student, measurement.teacher)]
    for model in models:
        model.resize_token_embeddings(len(tokenizer))
        model.generation_config.suppress_tokens = None
    prompts = [json.loads(line)["prompt"] for line in Path(options["dataset"]).read_text().splitlines()]
    return Setup(*models, tokenizer, prompts, options)


def make_trainer(contestant: str, setup: Setup) -> Any:
    """The trainer of a contestant, which counts tokens and returns recorded completions instead of sampling."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    from vopd import VOPDConfig, VOPDTrainer

    # VOPDConfig's defaults.
    plain = {
        "bf16": False, "gradient_checkpointing": False, "disable_dropout": True, "disable_tqdm": True,
        "report_to": "none", "logging_steps": 1,
    }  # fmt: skip
    base, config = (DistillationTrainer, DistillationConfig) if contestant == TRL else (VOPDTrainer, VOPDConfig)

    class Contestant(base):  # type: ignore[misc,valid-type]
        sampled = 0

        def _generate_single_turn(self, prompt_ids: Any, *given: Any, **named: Any) -> list[list[int]]:
            if setup.recorded is None:
                found = super()._generate_single_turn(prompt_ids, *given, **named)
            else:
                found = [setup.recorded[tuple(ids)] for ids in prompt_ids]
            self.sampled += sum(map(len, found))
            return found

    options = {**(plain if contestant == TRL else {}), **setup.options}
    return Contestant(
        model=setup.student,
        teacher_model=setup.teacher,
        args=config(**{name: value for name, value in options.items() if name in config.__dataclass_fields__}),
        train_dataset=Dataset.from_dict({"prompt": setup.prompts}),
        processing_class=setup.tokenizer,
    )


def measure_here(job: Job) -> Measured:
    """Train in this process."""
    from transformers import TrainerCallback

    marks: list[tuple[float, int]] = []

    class Clock(TrainerCallback):
        """Marks the begin of the training, and each time that a step was logged, which ends it."""

        def on_train_begin(self, *given: Any, **named: Any) -> None:
            marks.append((time.process_time(), 0))

        def on_log(self, *given: Any, **named: Any) -> None:
            marks.append((time.process_time(), trainer.sampled))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        setup = varied(job, path, DRY if job.dry else Size()) if job.case == "varied" else embedded(job, path)
        trainer = make_trainer(job.contestant, setup)
        trainer.add_callback(Clock())
        trainer.train()
    del marks[-1]  # the log of the whole training
    seconds, tokens = ([end - start for start, end in pairwise(column)] for column in zip(*marks))
    warm_up = 0 if job.dry else WARM_UP[job.case]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Measured(seconds[warm_up:], tokens[warm_up:], peak)


def measure(job: Job, before: Path) -> Measured:
    """Train in a separate process, or in this one to try the program; `before`: sources as they were."""
    if job.dry:
        return measure_here(job)
    environment = {**os.environ, "PYTHONPATH": str(before / "src")} if job.contestant == BEFORE else None
    command = [sys.executable, "-W", "ignore", __file__, "--child", json.dumps(asdict(job))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def check_out(folder: Path) -> None:
    """Write the sources of COMMIT_BEFORE into a folder."""
    command = ["git", "archive", COMMIT_BEFORE, "src"]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]).stdout
    with tarfile.open(fileobj=io.BytesIO(found)) as archive:
        archive.extractall(folder, filter="data")


def rows_of(case: str, part: str, arguments: argparse.Namespace) -> list[Row]:
    """One table: medians over all steps of all rounds."""
    names = [name for name in CONTESTANTS[case] if not arguments.only or name in arguments.only]
    names = [name for name in names if name != BEFORE or not arguments.dry_run]
    found: dict[str, list[Measured]] = {name: [] for name in names}
    steps = 1 if arguments.dry_run else WARM_UP[case] + (arguments.steps or STEPS[case])
    with tempfile.TemporaryDirectory() as folder:
        if BEFORE in names:
            check_out(Path(folder))
        for _ in range(arguments.rounds):
            for name in names:
                found[name].append(measure(Job(case, part, name, steps, arguments.dry_run), Path(folder)))
    return [_row(name, runs) for name, runs in found.items()]


def _row(name: str, runs: Sequence[Measured]) -> Row:
    steps = [step for run in runs for step in zip(run.seconds, run.tokens)]
    return Row(
        name,
        statistics.median(seconds for seconds, _ in steps),
        statistics.median(tokens / seconds for seconds, tokens in steps),
        int(statistics.median(run.peak_bytes for run in runs)),
    )


def table(rows: Sequence[Row]) -> str:
    """Plain text, with the tokens per second relative to those of TRL and of vopd as it was."""
    base = [row for row in rows if row.contestant in (TRL, BEFORE)]
    heads = "".join(f"{'x ' + row.contestant:>18}" for row in base)
    lines = [f"{'trainer':30}{'s/step':>9}{'tokens/s':>10}{'MiB':>7}{heads}"]
    for row in rows:
        ratios = "".join(f"{row.tokens_per_second / other.tokens_per_second:18.2f}" for other in base)
        numbers = f"{row.seconds:9.3f}{row.tokens_per_second:10.0f}{row.peak_bytes / 2**20:7.0f}"
        lines.append(f"{row.contestant:30}{numbers}{ratios}")
    return "\n".join(lines)


def parse(given: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--only", nargs="+", help="only these contestants")
    parser.add_argument("--steps", type=int, help="steps of each run after the warm-up; default: 3, embedded 20")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="also write the results to this file")
    parser.add_argument("--dry-run", action="store_true", help="one step of tiny models, in this process")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Print a table per case and part."""
    arguments = parse(given)
    if arguments.child:
        torch.set_num_threads(1)
        print(json.dumps(asdict(measure_here(Job(**json.loads(arguments.child))))))
        return
    from loss import machine

    records: dict[str, Any] = {"machine": machine("cpu"), "rounds": arguments.rounds, "cases": {}}
    for case in arguments.case:
        for part in PARTS[case]:
            rows = rows_of(case, part, arguments)
            records["cases"].setdefault(case, {})[part] = [asdict(row) for row in rows]
            print(f"\n{case}: {part}\n{table(rows)}", flush=True)
            if arguments.json:  # after every table, for a run that is interrupted
                Path(arguments.json).write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

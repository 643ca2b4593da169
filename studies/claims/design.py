"""What the claims study runs: settings, estimators, seeds, learning rates. plan.md says why."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.claims import controls, pairs
from vopd.data.reasoning import Problem
from vopd.experiments.grid import GridRun, run_name
from vopd.experiments.held_out import HeldOut, write_held_out
from vopd.experiments.measure import Measurement
from vopd.experiments.pair import MAX_COMPLETION_TOKENS, embedded_pair, pair_problems, prompt_text

FEW = ("opd", "vopd", "vopd_optimal", "full_rkl")
ESTIMATORS = {
    "main": ("opd", "vopd", "vopd_top_k", "vopd_optimal", "rao_blackwell_teacher_top_k", "full_rkl"),
    "larger": FEW,
    "sorting": FEW,
}
# What also runs on main at one rate for all, as everything did in the first study.
AT_COMMON_RATE = ("opd_undetached", "opd", "vopd", "vopd_optimal", "full_rkl")
# The paper's k and, for what a server gives, a usual number of log-probabilities.
TOP_K = {"vopd_top_k": 5, "rao_blackwell_teacher_top_k": 20}
# The pilot begins with the middle three, and goes on where an estimator does best at the smallest or the largest.
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
COMMON_RATE = 3e-4
# Earlier seeds: 0 to 4 in the first study; 11 to 18 where the deviations of the power calculation were measured.
PILOT_SEED = 50
FIRST_SEED = 100
SEEDS = {"main": 12, "larger": 8, "sorting": 8}
SEEDS_AT_COMMON_RATE = 8
BATCH = 16
WARMUP = 20
PILOT_FILE = Path(__file__).parent / "pilot.json"

Wanted = tuple[str, float, int]
"""Estimator, learning rate, seed."""


@dataclass(frozen=True)
class Size:
    """How large the study is; a smaller one tries the machinery out.

    Attributes:
        steps: optimizer steps of a run.
        problems: held-out problems of every seed, each with one sampled completion, at the last checkpoints.
        curve_problems: how many of them the earlier checkpoints are measured on.
        contexts, resamples: of the measurements at fixed parameters.
        seeds: the most seeds of a setting.
    """

    steps: int = 200
    problems: int = 2000
    curve_problems: int = 400
    contexts: int = 96
    resamples: int = 16
    seeds: int = 100

    @property
    def last_steps(self) -> tuple[int, ...]:
        """The checkpoints whose mean is a run's figure: at 80 %, 90 % and the end of training."""
        return tuple(self.steps * tenths // 10 for tenths in (8, 9, 10))

    @property
    def curve_steps(self) -> tuple[int, ...]:
        """The checkpoints that are measured."""
        return *(self.steps * tenths // 10 for tenths in (2, 4, 6)), *self.last_steps


SMALL = Size(steps=10, problems=24, curve_problems=8, contexts=4, resamples=4, seeds=2)


@dataclass(frozen=True)
class Setting:
    """A student, a teacher and a task."""

    name: str
    title: str
    student: Path
    teacher: Path
    problems: Callable[[str, int, int], list[Problem]]
    prompt: Callable[[Problem], str]
    kind: str

    def held_out(self, count: int, seed: int) -> list[HeldOut]:
        found = self.problems("held_out", count, seed)
        if self.kind == "tags":  # the study's own wording of the answer, graded by the study
            return [HeldOut(self.prompt(problem), problem.answer) for problem in found]
        return [HeldOut.of(problem, self.prompt(problem)) for problem in found]


def settings() -> dict[str, Setting]:
    """The three settings of the study by name."""
    embedded = embedded_pair()
    pair: Mapping[str, Any] = {"teacher": embedded.teacher, "problems": pair_problems, "prompt": prompt_text}
    return {
        setting.name: setting
        for setting in (
            Setting("main", "legs and sums, student of 0.2 M", embedded.student, kind="math", **pair),
            Setting("larger", "legs and sums, student of 0.3 M", pairs.MODELS / "larger-student", kind="math", **pair),
            Setting(
                "sorting", "sorting, vocabulary 1,200", pairs.MODELS / "sorting-student",
                pairs.MODELS / "sorting-teacher", pairs.sorting_problems, lambda problem: problem.question, "tags",
            ),
        )
    }  # fmt: skip


def held_out_file(seed: int) -> str:
    """The name of the held-out problems of a seed."""
    return f"held_out-seed{seed}.jsonl"


def write_problems(setting: Setting, folder: Path, size: Size, seeds: Iterable[int]) -> Measurement:
    """Write the prompts and the held-out problems of every seed, and the problems of the start."""
    folder.mkdir(parents=True, exist_ok=True)
    write_held_out(setting.held_out(size.problems, 2000), folder / "held_out.jsonl")
    for seed in seeds:
        write_held_out(setting.held_out(size.problems, 2000 + seed), folder / held_out_file(seed))
        problems = setting.problems("train", size.steps * BATCH, 1000 + seed)
        rows = (json.dumps({"prompt": setting.prompt(problem)}) + "\n" for problem in problems)
        (folder / f"train-seed{seed}.jsonl").write_text("".join(rows))
    return Measurement(
        str(setting.student), str(setting.teacher), str(folder / "held_out.jsonl"), size.problems,
        size.curve_problems, MAX_COMPLETION_TOKENS, setting.kind,
    )  # fmt: skip


def grid_run(setting: Setting, folder: Path, size: Size, estimator: str, rate: float, seed: int) -> GridRun:
    """One run with warm-up and linear decay."""
    options: dict[str, Any] = {
        "model": str(setting.student),
        "teacher_model": str(setting.teacher),
        "teacher_dtype": "float32",
        "dataset": str(folder / f"train-seed{seed}.jsonl"),
        "max_steps": size.steps,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "max_completion_length": MAX_COMPLETION_TOKENS,
        "lr_scheduler_type": "linear",
        "warmup_steps": min(WARMUP, size.steps // 5),
        "save_steps": size.steps // 10,
        "save_only_model": True,
        "metrics_every": 10,
        "samples_per_step": 0,
        "use_cpu": True,
    }
    if estimator in TOP_K:
        options["loss_top_k"] = TOP_K[estimator]
    found = controls.estimator_of(estimator)
    return GridRun(found, seed, rate, run_name(found, rate, seed), options)


def best_rates(pilot: Iterable[Mapping[str, Any]], setting: str) -> dict[str, float]:
    """For each estimator of a setting the pilot's rate of least held-out reverse KL; a run that broke off has none."""
    tried: dict[str, dict[float, float]] = {name: {} for name in ESTIMATORS[setting]}
    for record in pilot:
        if record["setting"] == setting:
            tried[record["estimator"]][record["rate"]] = record.get("reverse_kl", float("inf"))
    return {name: min(values, key=values.__getitem__) for name, values in tried.items() if values}


def committed_pilot() -> list[dict[str, Any]]:
    """The pilot's records, from which the plan took the learning rates."""
    found: list[dict[str, Any]] = json.loads(PILOT_FILE.read_text())
    return found


def planned(setting: str, best: Mapping[str, float], size: Size) -> list[Wanted]:
    """The runs of a setting, seed by seed: each estimator at its own rate, and on main some at the common rate too."""
    own = [(name, best[name]) for name in ESTIMATORS[setting]]
    common = [(name, COMMON_RATE) for name in AT_COMMON_RATE] if setting == "main" else []
    found: list[Wanted] = []
    for seed in range(min(size.seeds, SEEDS[setting])):
        cells = [*own, *common] if seed < SEEDS_AT_COMMON_RATE else own
        found += [(*cell, FIRST_SEED + seed) for cell in dict.fromkeys(cells)]
    return found

"""What the claims study runs: estimators, seeds, learning rates, tasks; 130 training runs at most."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.claims import controls, pairs
from studies.claims.one_run import CHOICE_FILE
from vopd.data.reasoning import Problem
from vopd.estimators import ESTIMATORS
from vopd.experiments.grid import GridRun, run_name
from vopd.experiments.held_out import HeldOut, write_held_out
from vopd.experiments.measure import Measurement
from vopd.experiments.pair import MAX_COMPLETION_TOKENS, embedded_pair, pair_problems, prompt_text

MAIN = ("opd", "vopd", "vopd_top_k", "vopd_sparse", "vopd_optimal", "rao_blackwell_teacher_top_k", "full_rkl",
        "top_k_rkl")  # fmt: skip
CONTROLS = tuple(controls.CONTROLS)
FEW = ("opd", "vopd", "vopd_optimal", "full_rkl")
# Which estimators get five seeds at their own best rate first, should not all fit.
OWN_BEST_ORDER = ("opd", "vopd", "full_rkl", "vopd_optimal", "rao_blackwell_teacher_top_k", "vopd_top_k")
# The paper's k and, for what a server gives, a usual number of log-probabilities.
TOP_K = {"vopd_top_k": 5, "vopd_sparse": 5, "top_k_rkl": 5, "rao_blackwell_teacher_top_k": 20}
RATES = (1e-4, 3e-4, 1e-3)
COMMON_RATE = 3e-4
SEEDS = 5
MOST_RUNS = 130
BATCH = 16
WARMUP = 20
CHECKPOINTS = 4


@dataclass(frozen=True)
class Size:
    """How large the study is; a smaller one tries the machinery out."""

    steps: int = 200
    seeds: int = SEEDS
    problems: int = 400
    curve_problems: int = 128
    choice_problems: int = 200
    contexts: int = 48
    resamples: int = 16


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


def write_problems(setting: Setting, folder: Path, size: Size) -> Measurement:
    """Write held-out problems, those that choose the rates, and the prompts of every seed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_held_out(setting.held_out(size.problems, 0), folder / "held_out.jsonl")
    if setting.name == "main":
        # Another seed; a problem that it shares with the first is left out.
        known = {problem.prompt for problem in setting.held_out(size.problems, 0)}
        others = [p for p in setting.held_out(3 * size.choice_problems, 1) if p.prompt not in known]
        write_held_out(others[: size.choice_problems], folder / CHOICE_FILE)
    for seed in range(size.seeds):
        problems = setting.problems("train", size.steps * BATCH, 100 + seed)
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
        "save_steps": size.steps // CHECKPOINTS,
        "save_only_model": True,
        "metrics_every": 10,
        "samples_per_step": 0,
        "use_cpu": True,
    }
    if estimator in TOP_K:
        options["loss_top_k"] = TOP_K[estimator]
    found = controls.estimator_of(estimator)
    return GridRun(found, seed, rate, run_name(found, rate, seed), options)


def pilot_runs() -> list[tuple[str, float, int]]:
    """(estimator, rate, seed) of the pilot: the first seed at every rate."""
    return [(name, rate, 0) for rate in RATES for name in MAIN]


def common_runs(names: Iterable[str], seeds: int) -> list[tuple[str, float, int]]:
    """The runs at the common rate, seed by seed."""
    return [(name, COMMON_RATE, seed) for seed in range(seeds) for name in names]


def own_best_runs(best: Mapping[str, float], room: int, seeds: int) -> list[tuple[str, float, int]]:
    """The other seeds of estimators whose best rate is not the common one: whole estimators, as there is room."""
    chosen = [name for name in OWN_BEST_ORDER if best[name] != COMMON_RATE]
    chosen = chosen[: room // max(1, seeds - 1)]
    return [(name, best[name], seed) for seed in range(1, seeds) for name in chosen]


def check() -> None:
    """The design names what there is."""
    assert set(MAIN) <= set(ESTIMATORS) and not set(CONTROLS) & set(ESTIMATORS)

"""`vopd compare`: the runs of a comparison, from a recipe or on the embedded pair, and its results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from typing import Any

from vopd.atomic import write_whole
from vopd.errors import ConfigurationError, Faults
from vopd.estimators import Estimator
from vopd.estimators.catalogue import find_estimators
from vopd.evaluation.journal import write_lines
from vopd.models import best_device
from vopd.reporting.comparison import MEASUREMENT_FILE, Comparison, write_comparison
from vopd.reporting.report import write_report
from vopd.reporting.run_files import read_json
from vopd.reporting.tables import comparison_text
from vopd.run.facts import gather_facts
from vopd.run.plan import read_plan

from .grid import GridRun, Say, collect, config_of, is_finished, prepare, run_grid, run_name
from .held_out import HeldOut, read_held_out, write_held_out
from .measure import Measurement
from .pair import MAX_COMPLETION_TOKENS, embedded_pair, pair_problems, prompt_text

EMBEDDED_SEEDS = (0, 1, 2)
# Small enough for vanilla OPD to improve too: larger steps favor the estimators with low noise.
EMBEDDED_RATE = 3e-4
EMBEDDED_TOP_K = 20
HELD_OUT_FILE = "held_out.jsonl"
_EMBEDDED_STEPS = 160
_CHECKPOINTS = 4
_JOBS_FILE = "jobs.json"
# What a comparison writes before its first run starts.
INPUTS = (HELD_OUT_FILE, "train-seed*.jsonl", _JOBS_FILE, MEASUREMENT_FILE, "configs")


def is_comparison(folder: Path) -> bool:
    """Whether `folder` is that of a comparison, or may become it: one has begun there, or wrote at most its inputs."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return MEASUREMENT_FILE in names or all(any(fnmatch(name, own) for own in INPUTS) for name in names)


@dataclass(frozen=True)
class Grid:
    """The runs of a comparison: every estimator with every seed and every learning rate."""

    estimators: Sequence[Estimator]
    seeds: Sequence[int]
    learning_rates: Sequence[float]

    def __post_init__(self) -> None:
        find_estimators(self.estimators)  # refuses two of one name
        names = [estimator.name for estimator in self.estimators]
        for label, values in (("estimator", names), ("seed", self.seeds), ("rate", self.learning_rates)):
            if not values:
                raise ConfigurationError(f"a comparison needs at least one {label}")
            if len(set(values)) < len(values):
                raise ConfigurationError(f"a comparison needs each {label} once, got {list(values)}")


def embedded_runs(
    grid: Grid, folder: Path, options: Mapping[str, Any], *, problems: int, curve_problems: int
) -> tuple[list[GridRun], Measurement]:
    """Runs on the embedded pair, each seed with its own prompts; `options` of `vopd train` override the defaults."""
    paths, steps = embedded_pair(), int(options.get("max_steps", _EMBEDDED_STEPS))
    measurement = Measurement(
        str(paths.student), str(paths.teacher), str(folder / HELD_OUT_FILE), problems, curve_problems,
        MAX_COMPLETION_TOKENS,
    )  # fmt: skip
    usual: dict[str, Any] = {
        "model": str(paths.student),
        "teacher_model": str(paths.teacher),
        "per_device_train_batch_size": 8,  # two of like length have less padding than one of 16
        "gradient_accumulation_steps": 2,
        "max_completion_length": MAX_COMPLETION_TOKENS,
        "max_steps": steps,
        "lr_scheduler_type": "linear",
        "warmup_steps": max(1, steps // 8),
        "save_steps": max(1, steps // _CHECKPOINTS),
        "save_only_model": True,
        "metrics_every": 10,
        "use_cpu": True,
        "loss_top_k": EMBEDDED_TOP_K,
        **options,
    }
    runs = recipe_runs(grid, usual)
    folder.mkdir(parents=True, exist_ok=True)
    held_out = [HeldOut.of(problem, prompt_text(problem)) for problem in pair_problems("held_out", problems, 0)]
    write_held_out(held_out, folder / HELD_OUT_FILE)
    prompts = {seed: folder / f"train-seed{seed}.jsonl" for seed in grid.seeds}
    for seed, path in prompts.items():
        drawn = pair_problems("train", steps * _batch(usual), seed)
        write_lines(path, ({"prompt": prompt_text(one), "answer": one.answer, "task": one.task} for one in drawn))
    return [replace(run, options={**run.options, "dataset": str(prompts[run.seed])}) for run in runs], measurement


def recipe_runs(grid: Grid, options: Mapping[str, Any]) -> list[GridRun]:
    """Runs of one recipe: `options` are those of `vopd train`, equal for all runs except for what the grid varies.

    Seed by seed, so that a comparison that is cut short has complete seeds.
    """
    runs = []
    for seed, rate, estimator in product(grid.seeds, grid.learning_rates, grid.estimators):
        own = dict(options)
        if not estimator.needs_top_k:
            own.pop("loss_top_k", None)
        elif own.get("loss_top_k") is None:
            raise ConfigurationError(f"estimator '{estimator.name}' needs loss_top_k, for example loss_top_k=20")
        runs.append(GridRun(estimator, seed, rate, run_name(estimator, rate, seed), own))
    return runs


def _check_runs(runs: Sequence[GridRun], folder: Path, held_out: str | None) -> None:
    """Check the runs that are not finished as `vopd train` does before it loads weights.

    Args:
        held_out: file of problems; if given it is checked too, and so are the models and prompts of the first run.

    Raises:
        VOPDError: of the first fault, with a line of the message for each.
    """
    faults = Faults()
    waiting = {(run.estimator.name, run.learning_rate): run for run in runs if not is_finished(folder / run.directory)}
    plans = [
        read_plan("compare", "", ["--config", str(config_of(folder, run.directory)), "--resume", "true"], faults)
        for run in waiting.values()
    ]
    if plans and held_out is not None:
        faults.check(read_held_out, held_out)
        if plans[0] is not None:
            faults.check(gather_facts, plans[0])
    faults.tell()


def compare(
    folder: Path,
    runs: Sequence[GridRun],
    measurement: Measurement,
    *,
    processes: int,
    target: float | None = None,
    offline: bool = True,
    say: Say = print,
) -> Comparison:
    """Run what is missing of the grid, then write comparison.json, comparison.txt and the report.

    Args:
        processes: runs at a time.
        target: report the samples needed to reach this accuracy; default: what the first estimator ends with.
    """
    jobs = most_jobs(folder, runs, processes)
    prepare(runs, folder, measurement)
    _check_runs(runs, folder, None if offline else measurement.held_out)
    run_grid(runs, folder, measurement, processes=processes, offline=offline, say=say)
    comparison = collect(runs, folder, _settings(runs, measurement, target, jobs))
    write_comparison(comparison, folder)
    text = comparison_text(comparison)
    (folder / "comparison.txt").write_text(text + "\n", encoding="utf-8")
    say("\n" + text)
    say(f"\nwritten to {write_report(folder)}")
    return comparison


def most_jobs(folder: Path, runs: Sequence[GridRun], processes: int) -> int | None:
    """The most runs at a time in any call for this folder, whose finished runs have shared the machine; None: unknown.

    Kept in a file from before the first run, since a call may be interrupted and repeated with fewer.
    """
    begun = any(is_finished(folder / run.directory) for run in runs)
    earlier = read_json(folder / _JOBS_FILE).get("jobs", None if begun else 0)
    jobs = None if earlier is None else max(processes, earlier)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / _JOBS_FILE, json.dumps({"jobs": jobs}) + "\n")
    return jobs


def _batch(options: Mapping[str, Any]) -> int:
    """Completions per optimizer step of one process."""
    return int(options.get("per_device_train_batch_size", 8)) * int(options.get("gradient_accumulation_steps", 1))


def _settings(
    runs: Sequence[GridRun], measurement: Measurement, target: float | None, jobs: int | None
) -> dict[str, Any]:
    options = runs[0].options
    found = {
        "student": measurement.student,
        "teacher": measurement.teacher,
        "steps": options.get("max_steps", "num_train_epochs of the recipe"),
        "batch": _batch(options),
        "learning_rates": sorted({run.learning_rate for run in runs}),
        "seeds": sorted({run.seed for run in runs}),
        "held_out_problems": measurement.problems,
        "curve_problems": min(measurement.curve_problems, measurement.problems),
        "device": "cpu" if options.get("use_cpu") else best_device(),
        "jobs": jobs,
    }
    return found if target is None else {**found, "target_accuracy": target}

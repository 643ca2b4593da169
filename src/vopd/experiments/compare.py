"""`vopd compare`: what a comparison runs, from a recipe or on the embedded pair, and what it leaves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vopd.errors import ConfigurationError, check_known
from vopd.reporting.comparison import COMPARISON_FILE, Comparison, write_comparison
from vopd.reporting.report import write_report
from vopd.reporting.stability import stability_text
from vopd.reporting.tables import comparison_text

from .grid import GridRun, Say, collect, run_grid, run_name
from .held_out import KINDS, HeldOut, write_held_out
from .measure_models import Measurement
from .pair import MAX_COMPLETION_TOKENS, embedded_pair, pair_problems, prompt_text

EMBEDDED_STEPS = 160
_EMBEDDED_BATCH = 16
_EMBEDDED_TOP_K = 20
_CHECKPOINTS = 4
HELD_OUT_FILE = "held_out.jsonl"


@dataclass(frozen=True)
class Grid:
    """What is compared: every estimator with every seed and every learning rate."""

    estimators: Sequence[str]
    seeds: Sequence[int]
    learning_rates: Sequence[float]

    def __post_init__(self) -> None:
        from vopd.estimators.checks import find_estimator

        for name in self.estimators:
            find_estimator(name)
        for label, values in (("estimator", self.estimators), ("seed", self.seeds), ("rate", self.learning_rates)):
            if not values:
                raise ConfigurationError(f"a comparison needs at least one {label}")
            if len(set(values)) < len(values):
                raise ConfigurationError(f"a comparison needs each {label} once, got {list(values)}")

    def cells(self) -> list[tuple[str, float, int]]:
        """(estimator, rate, seed), whole seeds first: a comparison that is cut short still compares."""
        return [(name, rate, seed) for seed in self.seeds for rate in self.learning_rates for name in self.estimators]


@dataclass(frozen=True)
class Measuring:
    """Held-out problems and how many: of the start and the end, and of the checkpoints on the way."""

    problems: int = 300
    curve_problems: int = 100
    kind: str = "math"

    def __post_init__(self) -> None:
        check_known("kind", self.kind, KINDS)
        if min(self.problems, self.curve_problems) < 1:
            raise ConfigurationError("problems and curve_problems must be at least 1")


def embedded_runs(
    grid: Grid, folder: Path, options: Mapping[str, Any], measuring: Measuring
) -> tuple[list[GridRun], Measurement]:
    """Runs on the embedded pair, each seed with prompts of its own; `options` of `vopd train` win over the usual."""
    paths, steps = embedded_pair(), int(options.get("max_steps", EMBEDDED_STEPS))
    batch = int(options.get("per_device_train_batch_size", _EMBEDDED_BATCH))
    folder.mkdir(parents=True, exist_ok=True)
    for seed in grid.seeds:
        rows = [{"prompt": prompt_text(problem)} for problem in pair_problems("train", steps * batch, seed)]
        (folder / f"train-seed{seed}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = [
        HeldOut.of(problem, prompt_text(problem)) for problem in pair_problems("held_out", measuring.problems, 0)
    ]
    write_held_out(held_out, folder / HELD_OUT_FILE)
    usual: dict[str, Any] = {
        "model": str(paths.student),
        "teacher_model": str(paths.teacher),
        "per_device_train_batch_size": _EMBEDDED_BATCH,
        "gradient_accumulation_steps": 1,
        "max_completion_length": MAX_COMPLETION_TOKENS,
        "max_steps": steps,
        "lr_scheduler_type": "linear",
        "warmup_steps": max(1, steps // 8),
        "save_steps": max(1, steps // _CHECKPOINTS),
        "save_only_model": True,
        "metrics_every": 10,
        "use_cpu": True,
    }
    measurement = Measurement(
        str(paths.student), str(paths.teacher), str(folder / HELD_OUT_FILE), measuring.problems,
        measuring.curve_problems, MAX_COMPLETION_TOKENS,
    )  # fmt: skip
    runs = [
        _run(cell, {**usual, **options, "dataset": str(folder / f"train-seed{cell[2]}.jsonl")}, _EMBEDDED_TOP_K)
        for cell in grid.cells()
    ]
    return runs, measurement


def recipe_runs(
    grid: Grid, options: Mapping[str, Any], held_out: str, measuring: Measuring, device: str
) -> tuple[list[GridRun], Measurement]:
    """Runs of one recipe: `options` are those of `vopd train`, the same for all but what the grid varies."""
    measurement = Measurement(
        str(options["model"]), str(options["teacher_model"]), str(Path(held_out).resolve()), measuring.problems,
        measuring.curve_problems, int(options.get("max_completion_length", 512)), measuring.kind, device,
    )  # fmt: skip
    return [_run(cell, options, None) for cell in grid.cells()], measurement


def _run(cell: tuple[str, float, int], options: Mapping[str, Any], usual_top_k: int | None) -> GridRun:
    from vopd.estimators import ESTIMATORS

    name, rate, seed = cell
    own = {key: value for key, value in options.items() if key != "loss_top_k"}
    if ESTIMATORS[name].needs_top_k:
        own["loss_top_k"] = options.get("loss_top_k", usual_top_k)
        if own["loss_top_k"] is None:
            raise ConfigurationError(f"estimator '{name}' needs loss_top_k, for example loss_top_k=20")
    return GridRun(name, seed, rate, run_name(name, rate, seed), own)


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
    """Do what is missing of the grid, then write comparison.json, comparison.txt and the report.

    Args:
        target: accuracy whose price in samples and seconds is told; default: what the first estimator ends
            with.
    """
    run_grid(runs, folder, measurement, processes=processes, offline=offline, say=say)
    comparison = collect(runs, folder, _settings(runs, measurement, target))
    write_comparison(comparison, folder / COMPARISON_FILE)
    text = f"{comparison_text(comparison)}\n\n{stability_text(comparison)}"
    (folder / "comparison.txt").write_text(text + "\n", encoding="utf-8")
    say("\n" + text)
    say(f"\nwritten to {write_report(folder)}")
    return comparison


def _settings(runs: Sequence[GridRun], measurement: Measurement, target: float | None) -> dict[str, Any]:
    options = runs[0].options
    batch = int(options.get("per_device_train_batch_size", 8)) * int(options.get("gradient_accumulation_steps", 1))
    found = {
        "student": measurement.student,
        "teacher": measurement.teacher,
        "steps": options.get("max_steps", "as the recipe's epochs"),
        "batch": batch,
        "learning_rates": sorted({run.learning_rate for run in runs}),
        "seeds": sorted({run.seed for run in runs}),
        "held_out_problems": measurement.problems,
    }
    return found if target is None else {**found, "target_accuracy": target}

"""`vopd demo`: a comparison on the embedded pair whose settings are chosen to show what an estimator changes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vopd.errors import check_at_least, require
from vopd.estimators import Estimator
from vopd.estimators.catalogue import find_estimators, spelled
from vopd.reporting.comparison import Comparison
from vopd.reporting.comparison_report import draw_comparison

from .compare import EMBEDDED_RATE, EMBEDDED_TOP_K, Grid, compare, embedded_runs
from .grid import GridRun, Say
from .measure import SHOWN_SAMPLES, Measurement

DEMO_ESTIMATORS = ("opd", "vopd", "vopd_optimal", "rao_blackwell_teacher_top_k", "full_rkl")
_WARMUP_STEPS = 20
_CHECKPOINTS = 5
# Checkpoints on the way get a smaller measurement than the end.
_CURVE_PROBLEMS = 200


def run_demo(
    output_dir: str | Path,
    estimators: Sequence[str | Estimator] = DEMO_ESTIMATORS,
    seeds: int = 1,
    processes: int = 2,
    steps: int = 300,
    problems: int = 600,
    say: Say = print,
) -> Comparison:
    """Distil the embedded student with each estimator from the same start and prompts, and compare.

    Every run is an ordinary `vopd train` in a process of its own; run directories, comparison.json, comparison.txt,
    comparison.png and report.html go to `output_dir`. Downloads nothing.

    Args:
        output_dir: made if it is absent.
        estimators: names in ``vopd.ESTIMATORS``, ``module:NAME``, or your own ``Estimator`` objects of a module.
        seeds: runs of each estimator; seed s has its own training problems, shared by all estimators.
        processes: runs at a time, of one thread each.
        steps: optimizer steps of a run, 16 prompts each.
        problems: held-out problems for accuracy and reverse KL.
        say: takes the lines of progress and the result.

    Raises:
        ConfigurationError: an unknown estimator or a number out of range.
        VOPDError: a run failed; with the last line of its log.
    """
    check_at_least("seeds", seeds, 1)
    check_at_least("processes", processes, 1)
    check_at_least("steps", steps, _CHECKPOINTS)
    check_at_least("problems", problems, SHOWN_SAMPLES)
    grid = Grid(find_estimators(estimators), range(seeds), (EMBEDDED_RATE,))
    # What is drawn at the end is asked for now, not after minutes of training.
    require("matplotlib", "report")
    started, folder = time.monotonic(), Path(output_dir).resolve()
    runs, measurement = demo_runs(grid, folder, steps, problems)
    names = ", ".join(estimator.name for estimator in grid.estimators)
    say(f"{len(runs)} runs of {steps} steps from one student, with {names}; all on the CPU, no download")
    comparison = compare(folder, runs, measurement, processes=processes, say=say)
    draw_comparison(comparison, folder, folder / "comparison.png")
    say(f"{time.monotonic() - started:.0f} s in all")
    return comparison


def demo_runs(grid: Grid, folder: Path, steps: int, problems: int) -> tuple[list[GridRun], Measurement]:
    """The runs, each named by its estimator, with the seed where there are several, and what is measured of them."""
    warmup, save = min(_WARMUP_STEPS, steps // 5), steps // _CHECKPOINTS
    options = {"max_steps": steps, "warmup_steps": warmup, "save_steps": save}
    runs, measurement = embedded_runs(grid, folder, options, problems=problems, curve_problems=_CURVE_PROBLEMS)
    several = len(grid.seeds) > 1
    named = [
        replace(run, directory=f"{run.estimator.name}-seed{run.seed}" if several else run.estimator.name)
        for run in runs
    ]
    return named, replace(
        measurement, accuracy_curve=False, ends_on_all=True, noise_estimators=list(map(spelled, grid.estimators)),
        noise_top_k=EMBEDDED_TOP_K,
    )  # fmt: skip

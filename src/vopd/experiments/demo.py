"""`vopd demo`: a comparison on the embedded pair that shows what the choice of estimator changes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vopd.errors import Faults, check_at_least, counted, require
from vopd.estimators import Estimator
from vopd.estimators.catalogue import find_estimators, spelled
from vopd.folders import new_folder
from vopd.reporting.comparison import Comparison
from vopd.reporting.comparison_report import draw_comparison

from .compare import EMBEDDED_RATE, EMBEDDED_TOP_K, INPUTS, Grid, compare, embedded_runs
from .grid import GridRun, Say
from .measure import SHOWN_SAMPLES, Measurement

DEMO_ESTIMATORS = ("opd", "vopd", "vopd_optimal", "rao_blackwell_teacher_top_k", "full_rkl")
_WARMUP_STEPS = 20
_CHECKPOINTS = 5
# Intermediate checkpoints are measured on fewer problems than the final model.
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
    """Distill the embedded student with each estimator from the same start and prompts, and compare.

    Every run is an ordinary `vopd train` in its own process. Run folders, comparison.json, comparison.txt,
    comparison.png and report.html go to `output_dir`. Downloads nothing.

    Args:
        output_dir: created if it does not exist.
        estimators: names in ``vopd.ESTIMATORS``, ``module:NAME``, or your own ``Estimator`` objects of a module.
        seeds: runs per estimator; seed s has its own training problems, shared by all estimators.
        processes: runs at a time, one thread each.
        steps: optimizer steps per run, 16 prompts each.
        problems: held-out problems for accuracy and reverse KL.
        say: receives the progress lines and the result.

    Raises:
        ConfigurationError: an unknown estimator or a number out of range.
        VOPDError: a run failed; the message has the last line of its log.
    """
    faults = Faults()
    least = {"seeds": (seeds, 1), "processes": (processes, 1), "steps": (steps, _CHECKPOINTS)}
    for name, (value, smallest) in {**least, "problems": (problems, SHOWN_SAMPLES)}.items():
        faults.check(check_at_least, name, value, smallest)
    found = faults.check(find_estimators, estimators)
    # Needed at the end; check now, not after minutes of training.
    faults.check(require, "matplotlib", "report")
    faults.tell()
    grid = Grid(found or (), range(seeds), (EMBEDDED_RATE,))
    started, folder = time.monotonic(), Path(output_dir).resolve()
    names = ", ".join(estimator.name for estimator in grid.estimators)
    with new_folder(folder, *INPUTS):
        runs, measurement = demo_runs(grid, folder, steps, problems)
        say(
            f"{counted(len(runs), 'run')} of {counted(steps, 'step')} from one student, with {names}; on the CPU, "
            "nothing is downloaded"
        )
        comparison = compare(folder, runs, measurement, processes=processes, say=say)
        draw_comparison(comparison, folder, folder / "comparison.png")
    say(f"{time.monotonic() - started:.0f} s in total")
    return comparison


def demo_runs(grid: Grid, folder: Path, steps: int, problems: int) -> tuple[list[GridRun], Measurement]:
    """The runs, named by estimator, and by seed if there are several, and what to measure."""
    warmup, save = min(_WARMUP_STEPS, steps // 5), steps // _CHECKPOINTS
    options = {"max_steps": steps, "warmup_steps": warmup, "save_steps": save}
    runs, measurement = embedded_runs(grid, folder, options, problems=problems, curve_problems=_CURVE_PROBLEMS)
    several = len(grid.seeds) > 1
    named = [
        replace(run, directory=f"{run.estimator.name}-seed{run.seed}" if several else run.estimator.name)
        for run in runs
    ]
    return named, replace(
        measurement, accuracy_curve=False, noise_estimators=list(map(spelled, grid.estimators)),
        noise_top_k=EMBEDDED_TOP_K,
    )  # fmt: skip

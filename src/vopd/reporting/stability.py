"""How surely runs end well, and what a given accuracy costs them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from vopd.reporting.comparison import Comparison, Run
from vopd.statistics import mean_score


@dataclass(frozen=True)
class Stability:
    """Of `runs` runs: how many end less accurate than they began, farther from the teacher, or broke off.

    A run that broke off counts in all three.
    """

    runs: int
    less_accurate: int
    farther: int
    broke_off: int


@dataclass(frozen=True)
class Price:
    """What it took the runs that reached an accuracy, at the first checkpoint that had it: medians over these runs."""

    runs: int
    reached: int
    samples: float | None
    seconds: float | None


def stability(comparison: Comparison, name: str) -> Stability:
    """Of an estimator's runs, by the final model on all held-out problems."""
    runs = comparison.runs_of(name)
    before = sum(comparison.start.student_outcomes)
    return Stability(
        len(runs),
        sum(sum(run.outcomes) < before for run in runs),
        sum(run.reverse_kl.value > comparison.start.reverse_kl.value for run in runs),
        sum(not run.curve for run in runs),
    )


def target_accuracy(comparison: Comparison) -> float:
    """The accuracy whose price is told: as set, or half of the way from the student to the teacher."""
    if "target_accuracy" in comparison.settings:
        return float(comparison.settings["target_accuracy"])
    start = comparison.start
    return (mean_score(start.student_outcomes).value + mean_score(start.teacher_outcomes).value) / 2


def price(comparison: Comparison, name: str, target: float) -> Price:
    """Samples (completions) and training seconds until a checkpoint is `target` accurate or better.

    Seconds are the run's, in proportion to the steps.
    """
    batch = float(comparison.settings.get("batch", 1))
    runs = comparison.runs_of(name)
    steps = {run.directory: _first(run.accuracy_curve, target) for run in runs}
    reached = [(run, step) for run in runs if (step := steps[run.directory]) is not None]
    if not reached:
        return Price(len(runs), 0, None, None)
    return Price(
        len(runs),
        len(reached),
        statistics.median(step * batch for _, step in reached),
        statistics.median(_seconds(run, step) for run, step in reached),
    )


def _first(curve: Sequence[tuple[int, float]], target: float) -> int | None:
    return next((step for step, value in curve if value >= target), None)


def _seconds(run: Run, step: int) -> float:
    last = run.accuracy_curve[-1][0]
    return run.seconds * step / last if last else 0.0

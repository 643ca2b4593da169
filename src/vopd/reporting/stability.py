"""How surely runs end well, and what a given accuracy costs them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from vopd.statistics import mean_score

from .comparison import Comparison, Run, score_of
from .page import table
from .tables import format_table


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
    """The accuracy whose price is told: as set, or what the first estimator ends with, and never below the start's."""
    if "target_accuracy" in comparison.settings:
        return float(comparison.settings["target_accuracy"])
    before = mean_score(comparison.start.student_outcomes).value
    return max(before, score_of(comparison.runs_of(comparison.estimators[0])).value)


def price(comparison: Comparison, name: str, target: float) -> Price:
    """Samples (completions) and training seconds until a checkpoint is `target` accurate or better.

    The start does not count. Seconds are the run's, in proportion to the steps.
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


def stability_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Headers and one row an estimator: runs that end worse than they began, and the price of the target accuracy."""
    target = target_accuracy(comparison)
    headers = [
        "", "less accurate than the start", "farther from the teacher", "broke off",
        f"reach {100 * target:.0f} %", "samples", "training",
    ]  # fmt: skip
    rows = []
    for name in comparison.estimators:
        found, cost = stability(comparison, name), price(comparison, name, target)
        counts = (found.less_accurate, found.farther, found.broke_off, cost.reached)
        shown = ["-", "-"] if cost.samples is None else [f"{cost.samples:.0f}", f"{cost.seconds:.0f} s"]
        rows.append([name, *(f"{count} of {found.runs}" for count in counts), *shown])
    return headers, rows


def stability_html(comparison: Comparison) -> str:
    """The same as a table of the page."""
    note = "Samples and training time until the first checkpoint of that accuracy: medians of the runs that reach it."
    return table(*stability_rows(comparison)) + f'<p class="note">{note}</p>'


def stability_text(comparison: Comparison) -> str:
    """The same as plain text."""
    note = "Samples and training time until the first checkpoint of that accuracy: medians of the runs that reach it."
    return "\n".join(["Stability and price\n", format_table(*stability_rows(comparison)), note])


def _first(curve: Sequence[tuple[int, float]], target: float) -> int | None:
    return next((step for step, value in curve if step and value >= target), None)


def _seconds(run: Run, step: int) -> float:
    last = run.accuracy_curve[-1][0]
    return run.seconds * step / last if last else 0.0

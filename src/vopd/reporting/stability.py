"""How surely runs end well, and what a given accuracy costs them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from vopd.statistics import mean_score

from .comparison import Comparison, score_of
from .page import table
from .tables import format_table

_NOTE = "Samples and training time until the first checkpoint of that accuracy: medians of the runs that reach it."


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
    samples, seconds = [], []
    for run in runs:
        step = next((step for step, value in run.accuracy_curve if step and value >= target), None)
        if step is not None:
            samples.append(step * batch)
            seconds.append(run.seconds * step / run.accuracy_curve[-1][0])
    if not samples:
        return Price(len(runs), 0, None, None)
    return Price(len(runs), len(samples), statistics.median(samples), statistics.median(seconds))


def _rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
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
    return table(*_rows(comparison)) + f'<p class="note">{_NOTE}</p>'


def stability_text(comparison: Comparison) -> str:
    """The same as plain text."""
    return "\n".join(["Stability and price\n", format_table(*_rows(comparison)), _NOTE])

"""How surely runs end well, and what a given accuracy costs them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from .comparison import Comparison
from .page import table
from .tables import format_table

_NOTE = "Samples and training time until the first checkpoint of that accuracy: medians of the runs that reach it."


@dataclass(frozen=True)
class Stability:
    """Of `runs` runs: how many end less accurate than they began, farther from the teacher, or broke off.

    A run that broke off counts in all three. `reached` runs had the target accuracy at a checkpoint; `samples` and
    `seconds` are what it took them to the first, medians over these runs.
    """

    runs: int
    less_accurate: int
    farther: int
    broke_off: int
    reached: int
    samples: float | None
    seconds: float | None


def target_accuracy(comparison: Comparison) -> float:
    """The accuracy whose price is told: as set, or what the first estimator ends with, and never below the start's."""
    if "target_accuracy" in comparison.settings:
        return float(comparison.settings["target_accuracy"])
    return max(comparison.start.student_score.value, comparison.score(comparison.estimators[0]).value)


def stability(comparison: Comparison, name: str, target: float) -> Stability:
    """Of an estimator's runs: how they end, by the final model on all held-out problems, and the price of `target`.

    The price is in samples (completions) and training seconds until a checkpoint is `target` accurate or better; the
    start does not count. Seconds are the run's, in proportion to the steps.
    """
    runs, start = comparison.runs_of(name), comparison.start
    samples, seconds = [], []
    for run in runs:
        step = next((step for step, value in run.accuracy_curve if step and value >= target), None)
        if step is not None:
            samples.append(step * float(comparison.settings.get("batch", 1)))
            seconds.append(run.seconds * step / run.accuracy_curve[-1][0])
    return Stability(
        len(runs),
        sum(sum(run.outcomes) < sum(start.student_outcomes) for run in runs),
        sum(run.reverse_kl.value > start.reverse_kl.value for run in runs),
        sum(not run.curve for run in runs),
        len(samples),
        statistics.median(samples) if samples else None,
        statistics.median(seconds) if samples else None,
    )


def _rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Headers and one row an estimator: runs that end worse than they began, and the price of the target accuracy."""
    target = target_accuracy(comparison)
    headers = [
        "", "less accurate than the start", "farther from the teacher", "broke off",
        f"reach {100 * target:.0f} %", "samples", "training",
    ]  # fmt: skip
    rows = []
    for name in comparison.estimators:
        found = stability(comparison, name, target)
        counts = (found.less_accurate, found.farther, found.broke_off, found.reached)
        shown = ["-", "-"] if found.samples is None else [f"{found.samples:.0f}", f"{found.seconds:.0f} s"]
        rows.append([name, *(f"{count} of {found.runs}" for count in counts), *shown])
    return headers, rows


def stability_html(comparison: Comparison) -> str:
    """The same as a table of the page."""
    return table(*_rows(comparison)) + f'<p class="note">{_NOTE}</p>'


def stability_text(comparison: Comparison) -> str:
    """The same as plain text."""
    return "\n".join(["Stability and price\n", format_table(*_rows(comparison)), _NOTE])

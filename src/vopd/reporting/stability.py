"""How reliably runs end well, and how many samples they need to reach a given accuracy."""

from __future__ import annotations

import statistics

from .comparison import Comparison

_NOTE = (
    "Samples (completions) and training time until the first checkpoint with that accuracy: medians over the runs that "
    "reached it."
)


def stability_note(comparison: Comparison) -> str:
    """The note below the table."""
    return f"{_NOTE} {comparison.curve_note}".rstrip()


def target_accuracy(comparison: Comparison) -> float:
    """The accuracy to reach: as set, or what the first estimator ends with, but never below the start's.

    On the problems of the curves, which have to reach it. A run that crashed ends with 0.
    """
    if "target_accuracy" in comparison.settings:
        return float(comparison.settings["target_accuracy"])
    curves = [run.accuracy_curve for run in comparison.runs_of(comparison.estimators[0])]
    begins = next((run.accuracy_curve[0][1] for run in comparison.runs if run.accuracy_curve), 0.0)
    return max(begins, statistics.mean(curve[-1][1] if curve else 0.0 for curve in curves))


def stability_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Headers and rows: how each estimator's runs end, and what they need to reach the target accuracy."""
    target = target_accuracy(comparison)
    headers = [
        "", "less accurate than the start", "farther from the teacher", "crashed", f"reached {100 * target:.0f} %",
        "samples to get there", "processor seconds" if comparison.by_processor else "wall time",
    ]  # fmt: skip
    rows = [[name, *_counts(comparison, name), *_needed(comparison, name, target)] for name in comparison.estimators]
    return headers, rows


def _counts(comparison: Comparison, name: str) -> list[str]:
    """Runs whose final model is less accurate than the start, or farther from the teacher, and runs that crashed.

    On all held-out problems. A run that crashed counts in all three.
    """
    runs, start = comparison.runs_of(name), comparison.start
    counts = (
        sum(sum(run.outcomes) < sum(start.student_outcomes) for run in runs),
        sum(run.reverse_kl.value > start.reverse_kl.value for run in runs),
        sum(not run.curve for run in runs),
    )
    return [f"{count} of {len(runs)}" for count in counts]


def _needed(comparison: Comparison, name: str, target: float) -> list[str]:
    """How many runs have a checkpoint, after the start, of accuracy `target` or better, and what the first one took.

    In samples (completions) and seconds of training, in proportion to the steps; medians over those runs.
    """
    runs = comparison.runs_of(name)
    samples, seconds = [], []
    for run in runs:
        step = next((step for step, value in run.accuracy_curve if step and value >= target), None)
        if step is not None:
            samples.append(step * float(comparison.settings.get("batch", 1)))
            seconds.append(comparison.seconds(run) * step / run.accuracy_curve[-1][0])
    took = [f"{statistics.median(samples):.0f}", f"{statistics.median(seconds):.0f} s"] if samples else ["-", "-"]
    return [f"{len(samples)} of {len(runs)}", *took]

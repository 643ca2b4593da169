"""Estimators compared from one student: what was measured, kept as plain JSON, and the summaries drawn from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vopd.errors import DataError
from vopd.statistics import Difference, Score, mean_score, paired_difference

from .run_files import read_json

COMPARISON_FILE = "comparison.json"


@dataclass(frozen=True)
class Interval:
    """A measured value with its 95 % interval over problems."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Start:
    """What all runs begin with.

    `student_outcomes` and `teacher_outcomes` are right or wrong for each held-out problem, greedy. `reverse_kl` is the
    student's exact KL to the teacher a token, in nats. `gradient_noise` is, by estimator, the variance that drawing
    the tokens puts into the gradient at the student's parameters; an estimator may be absent.
    """

    student_outcomes: Sequence[bool]
    teacher_outcomes: Sequence[bool]
    reverse_kl: Interval
    gradient_noise: dict[str, float]


@dataclass(frozen=True)
class Run:
    """One trained run: its place, its measurements after training, and the wall time of training.

    `curve` holds (step, held-out reverse KL) of the checkpoints, the start and the end included; `accuracy_curve` the
    accuracy there, where it was measured. A run that broke off has no curves and an infinite reverse KL.
    """

    estimator: str
    seed: int
    directory: str
    outcomes: Sequence[bool]
    reverse_kl: Interval
    curve: Sequence[tuple[int, float]]
    seconds: float
    accuracy_curve: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True)
class Comparison:
    """A start and the runs from it. `settings` are shown to the reader as they are."""

    settings: dict[str, Any]
    start: Start
    runs: Sequence[Run]

    @property
    def estimators(self) -> list[str]:
        """Names in the order of their first run."""
        return list(dict.fromkeys(run.estimator for run in self.runs))

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs})

    def runs_of(self, estimator: str) -> list[Run]:
        """The estimator's runs, by seed."""
        return sorted((run for run in self.runs if run.estimator == estimator), key=lambda run: run.seed)


@dataclass(frozen=True)
class SeedDifference:
    """Mean over seeds of (estimator - reference) where both ran, its range, and in how many seeds it was lower."""

    value: float
    lowest: float
    highest: float
    lower: int
    seeds: int


def score_of(runs: Sequence[Run]) -> Score:
    """Accuracy over problems, each problem's outcomes averaged over the runs; the interval is over problems."""
    columns = zip(*(run.outcomes for run in runs), strict=True)
    return mean_score([sum(outcomes) / len(outcomes) for outcomes in columns])


def mean_reverse_kl(runs: Sequence[Run]) -> float:
    """Mean over runs of the held-out reverse KL, nats a token."""
    return sum(run.reverse_kl.value for run in runs) / len(runs)


def relative_noise(start: Start, estimators: Sequence[str]) -> dict[str, float]:
    """Gradient noise as a multiple of that of `opd`, or of the noisiest estimator where `opd` was not measured."""
    measured = {name: start.gradient_noise[name] for name in estimators if name in start.gradient_noise}
    reference = measured.get("opd", max(measured.values(), default=0.0))
    return {name: noise / reference for name, noise in measured.items()} if reference > 0 else {}


def reverse_kl_difference(comparison: Comparison, estimator: str, reference: str) -> SeedDifference:
    """Held-out reverse KL of `estimator` less that of `reference`, seed by seed: same start, same prompts.

    A bootstrap over two or three seeds would look certain and is not given; the range is.
    """
    values = {run.seed: run.reverse_kl.value for run in comparison.runs_of(reference)}
    gaps = [run.reverse_kl.value - values[run.seed] for run in comparison.runs_of(estimator) if run.seed in values]
    if not gaps:
        raise DataError(f"{estimator} and {reference} have no seed in common; run both with the same seeds")
    return SeedDifference(sum(gaps) / len(gaps), min(gaps), max(gaps), sum(gap < 0 for gap in gaps), len(gaps))


def accuracy_difference(comparison: Comparison, estimator: str, reference: str) -> Difference:
    """Accuracy of `estimator` less that of `reference` on the same problems, outcomes averaged over seeds."""
    first, second = (
        [list(outcomes) for outcomes in zip(*(run.outcomes for run in comparison.runs_of(name)), strict=True)]
        for name in (estimator, reference)
    )
    return paired_difference(first, second)


def write_comparison(comparison: Comparison, path: str | Path) -> None:
    """Write a comparison as JSON."""
    Path(path).write_text(json.dumps(asdict(comparison), indent=1) + "\n", encoding="utf-8")


def read_comparison(path: str | Path) -> Comparison:
    """Read what `write_comparison` wrote, from the file or from the directory that holds it.

    Raises:
        DataError: there is no such file, or it is not a comparison.
    """
    path = Path(path)
    path = path / COMPARISON_FILE if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"there is no {path}; give a folder that `vopd demo` or `vopd compare` wrote")
    raw = read_json(path)
    try:
        start = Start(**{**raw["start"], "reverse_kl": Interval(**raw["start"]["reverse_kl"])})
        runs = [_run(run) for run in raw["runs"]]
        return Comparison(raw["settings"], start, runs)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a comparison that vopd wrote: {error}") from error


def _run(raw: dict[str, Any]) -> Run:
    curve, accuracy = (
        [(int(step), float(value)) for step, value in raw.get(name, ())] for name in ("curve", "accuracy_curve")
    )
    interval = Interval(**raw["reverse_kl"])
    return Run(**{**raw, "reverse_kl": interval, "curve": curve, "accuracy_curve": accuracy or ()})

"""A comparison of estimators from one student: the measurements, as plain JSON, and their summaries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vopd.errors import DataError
from vopd.estimators.policy_gradient import OPD
from vopd.statistics import Difference, Interval, Score, mean_score, paired_difference

from .run_files import read_json

COMPARISON_FILE = "comparison.json"
MEASUREMENT_FILE = "measurement.json"


@dataclass(frozen=True)
class Start:
    """What all runs start from.

    `student_outcomes` and `teacher_outcomes` are right or wrong for each held-out problem, greedy. `reverse_kl` is the
    student's exact KL to the teacher, nats/token. `gradient_noise` is, by estimator, the variance that sampling the
    tokens adds to the gradient at the student's parameters; an estimator may be absent.
    """

    student_outcomes: Sequence[bool]
    teacher_outcomes: Sequence[bool]
    reverse_kl: Interval
    gradient_noise: dict[str, float]

    @property
    def student_score(self) -> Score:
        return mean_score(self.student_outcomes)

    @property
    def teacher_score(self) -> Score:
        return mean_score(self.teacher_outcomes)


@dataclass(frozen=True)
class Run:
    """One trained run: its folder, its measurements after training, and its training time.

    `curve` holds (step, held-out reverse KL) of the checkpoints, start and end included; `accuracy_curve` the accuracy
    there, if it was measured. A run that crashed has no curves and an infinite reverse KL. `seconds` is wall time,
    `processor_seconds` processor time of all its optimizer steps; None if it was not recorded.
    """

    estimator: str
    seed: int
    directory: str
    outcomes: Sequence[bool]
    reverse_kl: Interval
    curve: Sequence[tuple[int, float]]
    seconds: float
    accuracy_curve: Sequence[tuple[int, float]] = field(default_factory=list)
    processor_seconds: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A start and the runs from it. `settings` are shown as they are, `colours` are those of custom estimators, whose
    module a reader need not have."""

    settings: dict[str, Any]
    start: Start
    runs: Sequence[Run]
    colours: dict[str, str] = field(default_factory=dict)

    @property
    def estimators(self) -> list[str]:
        """Names in the order of their first run."""
        return list(dict.fromkeys(run.estimator for run in self.runs))

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs})

    @property
    def seeds_label(self) -> str:
        """ "single seed", or the number of seeds that the numbers are means of."""
        return "single seed" if len(self.seeds) == 1 else f"means of {len(self.seeds)} seeds"

    @property
    def jobs(self) -> int | None:
        """How many runs shared the machine; None if unknown."""
        return self.settings.get("jobs")

    @property
    def by_processor(self) -> bool:
        """Whether estimators are compared by processor seconds, which other programs on the machine do not change.

        On a GPU only if several runs shared the machine: there the processor waits.
        """
        measured = all(run.processor_seconds is not None for run in self.runs)
        return measured and (self.jobs != 1 or self.settings.get("device") == "cpu")

    @property
    def curve_note(self) -> str:
        """Which problems the curves are on, if not on all; else empty."""
        few, all_of_them = self.settings.get("curve_problems"), len(self.start.student_outcomes)
        return (
            "" if few is None or few >= all_of_them else f"On the first {few} of the {all_of_them} held-out problems."
        )

    def seconds(self, run: Run) -> float:
        """The training time that estimators are compared by."""
        return run.processor_seconds if self.by_processor and run.processor_seconds is not None else run.seconds

    def runs_of(self, estimator: str) -> list[Run]:
        """The estimator's runs, by seed."""
        return sorted((run for run in self.runs if run.estimator == estimator), key=lambda run: run.seed)

    def score(self, estimator: str) -> Score:
        """Accuracy over problems, each problem's outcomes averaged over the runs; the interval is over problems."""
        return mean_score([sum(outcomes) / len(outcomes) for outcomes in self._outcomes(estimator)])

    def reverse_kl(self, estimator: str) -> float:
        """Mean over the estimator's runs of the held-out reverse KL, nats/token."""
        runs = self.runs_of(estimator)
        return sum(run.reverse_kl.value for run in runs) / len(runs)

    def relative_noise(self) -> dict[str, float]:
        """Gradient noise as a multiple of that of `opd`, or of the noisiest estimator if `opd` was not measured."""
        found = self.start.gradient_noise
        measured = {name: found[name] for name in self.estimators if name in found}
        reference = measured.get(OPD.name, max(measured.values(), default=0.0))
        return {name: noise / reference for name, noise in measured.items()} if reference > 0 else {}

    def reverse_kl_differences(self, estimator: str, reference: str) -> list[float]:
        """Held-out reverse KL of `estimator` minus that of `reference`, per seed that both ran.

        Reported with its range: a bootstrap over two or three seeds would look more certain than it is.
        """
        values = {run.seed: run.reverse_kl.value for run in self.runs_of(reference)}
        gaps = [run.reverse_kl.value - values[run.seed] for run in self.runs_of(estimator) if run.seed in values]
        if not gaps:
            raise DataError(f"{estimator} and {reference} have no seed in common; run both with the same seeds")
        return gaps

    def accuracy_difference(self, estimator: str, reference: str) -> Difference:
        """Accuracy of `estimator` minus that of `reference` on the same problems, outcomes averaged over seeds."""
        return paired_difference(self._outcomes(estimator), self._outcomes(reference))

    def _outcomes(self, estimator: str) -> list[tuple[bool, ...]]:
        """For each problem, the outcomes of the estimator's runs."""
        return list(zip(*(run.outcomes for run in self.runs_of(estimator)), strict=True))


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write a comparison into this folder, as JSON."""
    (folder / COMPARISON_FILE).write_text(json.dumps(asdict(comparison), indent=1) + "\n", encoding="utf-8")


def read_comparison(folder: Path) -> Comparison:
    """Read the comparison in this folder.

    Raises:
        DataError: there is no such file, or it is not a comparison.
    """
    path = folder / COMPARISON_FILE
    if not path.is_file():
        raise DataError(f"there is no {path}; give a folder that `vopd demo` or `vopd compare` wrote")
    raw = read_json(path)
    try:
        start = Start(**{**raw["start"], "reverse_kl": Interval(**raw["start"]["reverse_kl"])})
        runs = [_run(run) for run in raw["runs"]]
        return Comparison(raw["settings"], start, runs, raw.get("colours", {}))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a comparison that vopd wrote: {error}") from error


def _run(raw: dict[str, Any]) -> Run:
    curves = {name: list(map(tuple, raw.get(name, ()))) for name in ("curve", "accuracy_curve")}
    return Run(**{**raw, "reverse_kl": Interval(**raw["reverse_kl"]), **curves})

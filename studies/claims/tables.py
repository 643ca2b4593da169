"""The study's runs as plain records, and the paired comparisons between them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from studies.claims import design
from studies.claims.paired import holm, paired_t_difference
from studies.claims.run import Study
from vopd.experiments.grid import START, is_finished, measured_of, training_seconds
from vopd.statistics import Difference, paired_difference

Record = dict[str, Any]
# What a comparison is about, and whether less of it is better.
METRICS = {"reverse_kl": True, "accuracy": False}
COMMON, OWN_BEST = "common rate", "own best rate"


def read_runs(study: Study) -> list[Record]:
    """Every finished run of the study as a record without timings."""
    found = []
    for name, wanted in study.wanted().items():
        for run in study.runs(name, wanted):
            folder = study.output / name / run.directory
            if is_finished(folder):
                record = {"setting": name, "estimator": run.estimator, "rate": run.learning_rate, "seed": run.seed}
                found.append({**record, **_measured(measured_of(folder))})
    return found


def _measured(measured: Record) -> Record:
    if "failed" in measured:
        return {"failed": measured["failed"]}
    return {
        "accuracy": _mean(measured["outcomes"]),
        "sampled_accuracy": _mean(measured["sampled_outcomes"]),
        "reverse_kl": measured["reverse_kl"]["value"],
        "choice_reverse_kl": measured.get("choice", {}).get("value"),
        "curve": measured["curve"],
        "accuracy_curve": measured["accuracy_curve"],
        "outcomes": "".join("1" if right else "0" for right in measured["outcomes"]),
    }


def read_starts(study: Study) -> dict[str, Record]:
    """Student before and teacher of every setting."""
    found = {}
    for name in study.settings:
        measured = measured_of(study.output / name / START)
        found[name] = {
            "student_accuracy": _mean(measured["student_outcomes"]),
            "teacher_accuracy": _mean(measured["teacher_outcomes"]),
            "reverse_kl": measured["reverse_kl"]["value"],
            "outcomes": "".join("1" if right else "0" for right in measured["student_outcomes"]),
        }
    return found


def read_timings(study: Study) -> list[Record]:
    """Training seconds of every finished run; the machine was shared by two runs at a time, and perhaps by others."""
    return [
        {"setting": name, "run": run.directory, "training_seconds": round(training_seconds(folder), 1)}
        for name, wanted in study.wanted().items()
        for run in study.runs(name, wanted)
        if is_finished(folder := study.output / name / run.directory)
    ]


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


class Results:
    """Records by what they are of."""

    def __init__(self, runs: Sequence[Record], starts: Mapping[str, Record], best: Mapping[str, float]) -> None:
        self.runs, self.starts, self.best = runs, starts, best

    def of(self, setting: str, estimator: str, rate: float, seeds: Sequence[int] | None = None) -> list[Record]:
        """Runs that did not break off, by seed."""
        found = [
            run for run in self.runs
            if (run["setting"], run["estimator"], run["rate"]) == (setting, estimator, rate) and "failed" not in run
        ]  # fmt: skip
        return sorted((r for r in found if seeds is None or r["seed"] in seeds), key=lambda run: run["seed"])

    def rate(self, rates: str, estimator: str) -> float:
        """The estimator's learning rate in a kind of comparison."""
        return design.COMMON_RATE if rates == COMMON else self.best.get(estimator, design.COMMON_RATE)

    def pair(self, setting: str, rates: str, first: str, second: str) -> tuple[list[Record], list[Record]]:
        """Runs of two estimators with the same seeds."""
        found = [self.of(setting, name, self.rate(rates, name)) for name in (first, second)]
        seeds = {run["seed"] for run in found[0]} & {run["seed"] for run in found[1]}
        one, other = ([run for run in runs if run["seed"] in seeds] for runs in found)
        return one, other


@dataclass(frozen=True)
class Compared:
    """`first` less `second`: paired by seed, and for accuracy by problem as well. `holm` is the adjusted p-value."""

    setting: str
    rates: str
    metric: str
    first: str
    second: str
    seeds: int
    by_seed: Difference
    by_problem: Difference | None
    holm: float = 1.0

    @property
    def better(self) -> bool:
        """Whether `first` is better, significantly so after Holm's correction."""
        return self.holm < 0.05 and (self.by_seed.value < 0) == METRICS[self.metric]

    @property
    def worse(self) -> bool:
        return self.holm < 0.05 and not self.better


Plan = tuple[str, str, str, str]


def primary() -> list[Plan]:
    """(setting, rates, first, second) of the comparisons that verdicts rest on."""
    places = [("main", COMMON), ("main", OWN_BEST), ("larger", COMMON), ("sorting", COMMON)]
    pairs = [("vopd_top_k", "vopd"), ("top_k_rkl", "full_rkl"), ("vopd", "opd_undetached")]
    pairs += [("vopd_sparse", "vopd_top_k"), ("rao_blackwell_teacher_top_k", "vopd")]
    return [
        *((*place, *pair) for pair in (("vopd", "opd"), ("vopd_optimal", "vopd")) for place in places),
        *(("main", COMMON, *pair) for pair in pairs),
    ]


def secondary() -> list[Plan]:
    """The others, for the record."""
    pairs = [(name, "opd") for name in (*design.MAIN, *design.CONTROLS) if name not in ("opd", "vopd")]
    pairs += [("full_rkl", "vopd"), ("vopd", "opd_clipped")]
    own = [("vopd_optimal", "opd"), ("rao_blackwell_teacher_top_k", "opd"), ("full_rkl", "opd")]
    own += [("rao_blackwell_teacher_top_k", "vopd"), ("full_rkl", "vopd")]
    few = [("vopd_optimal", "opd"), ("full_rkl", "opd"), ("full_rkl", "vopd")]
    return [
        *(("main", COMMON, *pair) for pair in pairs),
        *(("main", OWN_BEST, *pair) for pair in own),
        *((setting, COMMON, *pair) for setting in ("larger", "sorting") for pair in few),
    ]


def compare_all(results: Results) -> list[Compared]:
    """All comparisons that have at least two seeds.

    Holm's correction is over all primary comparisons of one metric, and over all secondary ones.
    """
    found = []
    for metric in METRICS:
        for plans in (primary(), secondary()):
            family = [entry for plan in plans if (entry := _compare(results, metric, *plan)) is not None]
            adjusted = holm([entry.by_seed.p_value for entry in family])
            found += [replace(entry, holm=p) for entry, p in zip(family, adjusted, strict=True)]
    return found


def _compare(results: Results, metric: str, setting: str, rates: str, first: str, second: str) -> Compared | None:
    one, other = results.pair(setting, rates, first, second)
    if len(one) < 2:
        return None
    by_seed = paired_t_difference([run[metric] for run in one], [run[metric] for run in other])
    by_problem = paired_difference(_by_problem(one), _by_problem(other)) if metric == "accuracy" else None
    return Compared(setting, rates, metric, first, second, len(one), by_seed, by_problem)


def _by_problem(runs: Sequence[Record]) -> list[float]:
    """Share of the runs that were right, for every problem."""
    return [sum(column == "1" for column in columns) / len(runs) for columns in zip(*(run["outcomes"] for run in runs))]


def write_comparisons(compared: Sequence[Compared], path: Path) -> None:
    """One line a comparison, rounded to what means something."""
    header = ["setting", "rates", "metric", "first", "second", "seeds", "difference", "low", "high", "p", "holm"]
    header += ["problems_low", "problems_high", "problems_p"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for entry in compared:
            numbers = [*_numbers(entry.by_seed), entry.holm]
            more = _numbers(entry.by_problem)[1:] if entry.by_problem else ["", "", ""]
            what = [entry.setting, entry.rates, entry.metric, entry.first, entry.second, entry.seeds]
            writer.writerow([*what, *(_short(value) for value in (*numbers, *more))])


def _numbers(found: Difference) -> list[float]:
    return [found.value, found.low, found.high, found.p_value]


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def write_json(value: Any, path: Path) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="ascii")

"""Two estimators' runs compared, paired by seed."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from statsmodels.stats.multitest import multipletests

from studies.claims import design
from studies.claims.records import Record, figure
from vopd.errors import DataError
from vopd.statistics import Difference, ratio_of_means, t_interval

OWN_RATE, COMMON_RATE = "own rate", "common rate"
LEVEL = 0.05

Pair = tuple[str, str, str, str]
"""Setting, rates, first estimator, second."""


class Runs:
    """The study's records by what they are of.

    A run that broke off keeps its place: it counts with the reverse KL and the accuracy of the student before training.
    """

    def __init__(
        self, records: Iterable[Record], starts: Mapping[str, Record], best: Mapping[str, Mapping[str, float]]
    ) -> None:
        self.starts, self.best = starts, best
        self._found: dict[tuple[str, str, float], dict[int, Record]] = {}
        for record in records:
            key = record["setting"], record["estimator"], record["rate"]
            self._found.setdefault(key, {})[record["seed"]] = record

    def rate(self, setting: str, rates: str, estimator: str) -> float:
        """The learning rate that an estimator has in a kind of comparison; the controls have one."""
        return design.COMMON_RATE if rates == COMMON_RATE else self.best[setting].get(estimator, design.COMMON_RATE)

    def of(self, setting: str, rates: str, estimator: str) -> dict[int, Record]:
        """An estimator's records by seed."""
        return self._found.get((setting, estimator, self.rate(setting, rates, estimator)), {})

    def cells(self, setting: str) -> list[tuple[str, str]]:
        """(rates, estimator) of everything that ran in a setting: at the own rates, then on main at the common one."""
        common = [(COMMON_RATE, name) for name in design.AT_COMMON_RATE] if setting == "main" else []
        return [*((OWN_RATE, name) for name in design.ESTIMATORS[setting]), *common]

    def values(
        self, setting: str, rates: str, estimators: Sequence[str], metric: str = "reverse_kl"
    ) -> list[list[float]]:
        """A list of every estimator's values, over the seeds that all of them have."""
        found = [self.of(setting, rates, name) for name in estimators]
        seeds = sorted(set.intersection(*map(set, found)))
        return [[self._value(records[seed], metric) for seed in seeds] for records in found]

    def _value(self, record: Record, metric: str) -> float:
        if "failed" in record:
            return float(self.starts[record["setting"]][metric])
        return figure(record).value if metric == "reverse_kl" else float(record[metric])


@dataclass(frozen=True)
class Compared:
    """`first` less `second`. `adjusted` is the p-value after Holm's correction over the comparisons made with it."""

    setting: str
    rates: str
    metric: str
    first: str
    second: str
    seeds: int
    difference: Difference
    lower_in: int
    adjusted: float = 1.0

    @property
    def side(self) -> int:
        """-1 where `first` is lower, 1 where it is higher, both significantly after Holm's correction, else 0."""
        return 0 if self.adjusted >= LEVEL else int(math.copysign(1, self.difference.value))


def primary() -> list[Pair]:
    """The comparisons of reverse KL that verdicts on training, and the choice of the default, rest on."""
    settings = tuple(design.ESTIMATORS)
    pairs = (("vopd", "opd"), ("vopd_optimal", "vopd"), ("full_rkl", "vopd"))
    return [
        *((setting, OWN_RATE, *pair) for pair in pairs for setting in settings),
        ("main", OWN_RATE, "rao_blackwell_teacher_top_k", "vopd"),
    ]


def secondary() -> list[Pair]:
    """Every other pair of estimators, for the record."""
    own = [(setting, OWN_RATE, *pair) for setting, names in design.ESTIMATORS.items() for pair in _pairs(names)]
    common = [("main", COMMON_RATE, *pair) for pair in _pairs(design.AT_COMMON_RATE)]
    return [pair for pair in [*own, *common] if pair not in primary()]


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    return [(second, first) for first, second in combinations(names, 2)]


def compare_all(runs: Runs) -> list[Compared]:
    """The primary comparisons, then the secondary ones, with Holm's correction over each; the same for the accuracy."""
    found = []
    for metric in ("reverse_kl", "accuracy"):
        for pairs in (primary(), secondary()):
            family = [compare(runs, pair, metric) for pair in pairs]
            adjusted = multipletests([entry.difference.p_value for entry in family], method="holm")[1].tolist()
            found += [replace(entry, adjusted=p) for entry, p in zip(family, adjusted, strict=True)]
    return found


def compare(runs: Runs, pair: Pair, metric: str = "reverse_kl") -> Compared:
    """One comparison, before any correction."""
    setting, rates, first, second = pair
    one, other = runs.values(setting, rates, (first, second), metric)
    lower = sum(a < b for a, b in zip(one, other, strict=True))
    return Compared(setting, rates, metric, first, second, len(one), paired_t_difference(one, other), lower)


def paired_t_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Mean of first - second over the same runs in the same order, with Student's t interval and p-value.

    For training seeds, of which there are too few for a bootstrap. It takes the differences as normal.

    Raises:
        DataError: different numbers of runs.
        ConfigurationError: fewer than two.
    """
    if len(first) != len(second):
        raise DataError(f"a paired comparison needs the same runs: {len(first)} and {len(second)}")
    differences = torch.tensor(first, dtype=torch.float64) - torch.tensor(second, dtype=torch.float64)
    mean, (low, high) = differences.mean().item(), t_interval(differences)
    if low == high:
        return Difference(mean, low, high, 1.0 if mean == 0 else 0.0)
    return Difference(mean, low, high, float(stats.ttest_1samp(differences.numpy(), 0.0).pvalue))


def share_closed(runs: Runs, setting: str, rates: str, start: str, middle: str, end: str) -> Any:
    """(start - middle) / (start - end) in mean reverse KL, with Student's t interval of its linear form over seeds."""
    values = [torch.tensor(found, dtype=torch.float64) for found in runs.values(setting, rates, (start, middle, end))]
    part, whole = values[0] - values[1], values[0] - values[2]
    if whole.mean() <= 0:
        raise DataError(f"{setting}: {end} is not closer to the teacher than {start}; there is no distance to close")
    return ratio_of_means(part, whole)


def write_comparisons(compared: Sequence[Compared], path: Path) -> None:
    """One line per comparison, rounded to four digits."""
    header = ["setting", "rates", "metric", "first", "second", "seeds", "difference", "low", "high", "p", "holm"]
    with path.open("w", newline="", encoding="ascii") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*header, "seeds_lower"])
        for entry in compared:
            what = [entry.setting, entry.rates, entry.metric, entry.first, entry.second, entry.seeds]
            found = entry.difference
            numbers = [found.value, found.low, found.high, found.p_value, entry.adjusted]
            writer.writerow([*what, *(f"{number:.4g}" for number in numbers), entry.lower_in])

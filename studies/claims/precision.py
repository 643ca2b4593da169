"""How well a run's figure is known, by how many completions and checkpoints it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import Any

import torch

from studies.claims import design
from studies.claims.records import Record, figure
from vopd.reporting.tables import format_table

# Checkpoints, share of the completions: as in the first study, more completions, and as the plan says.
WAYS = ((1, 0.2), (1, 1.0), (3, 1.0))
_PAIRS = (("vopd", "opd"), ("vopd_optimal", "vopd"))


def precision(records: Sequence[Record], best_rates: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """For each setting and way: the mean standard error of a run's figure from its completions, and the standard
    deviation between seeds of two differences of runs at each estimator's own rate."""
    found = []
    for setting, (checkpoints, share) in product(design.ESTIMATORS, WAYS):
        own = [record for record in records if record["setting"] == setting and "failed" not in record]
        figures = {_key(record): figure(record, checkpoints, share) for record in own}
        error = fmean(one.error for one in figures.values())
        best = best_rates[setting]
        deviations = {f"{a} - {b}": _deviation(figures, (a, best[a]), (b, best[b])) for a, b in _PAIRS}
        found.append({"setting": setting, "checkpoints": checkpoints, "share": share, "error": error, **deviations})
    return found


def _key(record: Record) -> tuple[str, float, int]:
    return record["estimator"], record["rate"], record["seed"]


def _deviation(
    figures: dict[tuple[str, float, int], Any], first: tuple[str, float], second: tuple[str, float]
) -> float:
    seeds = sorted({seed for _, _, seed in figures})
    both = [(figures[(*first, seed)].value, figures[(*second, seed)].value) for seed in seeds
            if (*first, seed) in figures and (*second, seed) in figures]  # fmt: skip
    one, other = torch.tensor(both, dtype=torch.float64).unbind(1)
    return float((one - other).std())


def precision_table(found: Sequence[dict[str, Any]]) -> str:
    """The same as text."""
    names = [f"{a} - {b}" for a, b in _PAIRS]
    rows = [
        [row["setting"], str(row["checkpoints"]), f"{round(2000 * row['share'])}", f"{row['error']:.4f}",
         *(f"{row[name]:.4f}" for name in names)]
        for row in found
    ]  # fmt: skip
    headers = ["", "checkpoints", "completions", "error of a run", *(f"deviation of {name}" for name in names)]
    return format_table(headers, rows)

"""How well a run's figure is known, by how many completions and checkpoints it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from studies.claims import design
from studies.claims.records import Record, block_values, figure_of
from vopd.reporting.tables import format_table

# Checkpoints, share of the completions: as in the first study, more completions, and as the plan says.
WAYS = ((1, 0.2), (1, 1.0), (3, 1.0))
_PAIRS = (("vopd", "opd"), ("vopd_optimal", "vopd"))


def precision(records: Sequence[Record], best_rates: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """For each setting and way: the mean standard error of a run's figure, and of each of two differences of runs with
    the same seed, at each estimator's own rate, its standard error and its standard deviation between seeds.

    Errors are those from the completions alone. That of a difference is smaller than that of two runs apart by what the
    common random numbers take away.
    """
    found = []
    for setting, (checkpoints, share) in product(design.ESTIMATORS, WAYS):
        own = [record for record in records if record["setting"] == setting and "failed" not in record]
        values = {_key(record): block_values(record, checkpoints, share) for record in own}
        error = fmean(figure_of(one).error for one in values.values())
        row = {"setting": setting, "checkpoints": checkpoints, "share": share, "error": error}
        best = best_rates[setting]
        found.append(row | {f"{a} - {b}": _difference(values, (a, best[a]), (b, best[b])) for a, b in _PAIRS})
    return found


def _key(record: Record) -> tuple[str, float, int]:
    return record["estimator"], record["rate"], record["seed"]


def _difference(
    values: Mapping[tuple[str, float, int], Tensor], first: tuple[str, float], second: tuple[str, float]
) -> dict[str, float]:
    seeds = sorted({seed for _, _, seed in values})
    both = [values[(*first, seed)] - values[(*second, seed)] for seed in seeds
            if (*first, seed) in values and (*second, seed) in values]  # fmt: skip
    means = torch.stack([one.mean() for one in both])
    return {"error": fmean(figure_of(one).error for one in both), "deviation": float(means.std())}


def precision_table(found: Sequence[dict[str, Any]]) -> str:
    """The same as text."""
    names = [f"{a} - {b}" for a, b in _PAIRS]
    parts = ("error", "deviation")
    rows = [
        [row["setting"], str(row["checkpoints"]), f"{round(2000 * row['share'])}", f"{row['error']:.4f}",
         *(f"{row[name][part]:.4f}" for name in names for part in parts)]
        for row in found
    ]  # fmt: skip
    headers = [
        "",
        "checkpoints",
        "completions",
        "error of a run",
        *(f"{name}: {part}" for name in names for part in parts),
    ]
    return format_table(headers, rows)

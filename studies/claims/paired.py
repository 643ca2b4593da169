"""Tests of a study over training seeds: paired differences of few runs, and many of them together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from scipy import stats
from statsmodels.stats.multitest import multipletests

from vopd.errors import DataError
from vopd.statistics import Difference, t_interval


def paired_t_difference(a: Any, b: Any) -> Difference:
    """Mean of a - b over the same few runs in the same order, with Student's t interval and p-value.

    For training seeds, of which there are too few for a bootstrap or a sign-flip test: five seeds have 32 patterns of
    signs, the rarest of which comes up in 6 % of the cases. It takes the differences as normal.

    Args:
        a, b: (runs,) values; all pairs with an infinite value give an infinite interval and a p-value of 1.

    Raises:
        DataError: different numbers of runs.
        ConfigurationError: fewer than two.
    """
    first, second = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    if first.shape != second.shape:
        raise DataError(f"a paired comparison needs the same runs: {first.numel()} in a, {second.numel()} in b")
    differences = first - second
    mean = differences.mean().item()
    if not differences.isfinite().all():
        return Difference(mean, -math.inf, math.inf, 1.0)
    low, high = t_interval(differences)
    error = (differences.std() / math.sqrt(differences.numel())).item()
    if error == 0:
        return Difference(mean, low, high, 1.0 if mean == 0 else 0.0)
    return Difference(mean, low, high, float(2 * stats.t.sf(abs(mean) / error, differences.numel() - 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: below 0.05 keeps the chance of any false finding below 5 %."""
    return multipletests(p_values, method="holm")[1].tolist()

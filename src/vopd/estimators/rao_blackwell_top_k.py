"""Rao-Blackwell on the student's top k: those tokens summed exactly, the rest sampled."""

from __future__ import annotations

from vopd.functional import rest_mean_baseline
from vopd.functional.moments import not_none
from vopd.kernels import Estimate, Needs, Rows

from .base import Estimator, rao_blackwell


def estimate(rows: Rows) -> Estimate:
    """b = mean of r outside S, from the full rows; all on the scale of centred rewards r' = -d'."""
    otherwise = rows.moments().reward
    baseline = rest_mean_baseline(rows.other_prob, -not_none(rows.other_difference), otherwise)
    result = rao_blackwell(rows, -not_none(rows.support_difference), -not_none(rows.sampled_difference), baseline)
    return result.with_baseline(not_none(rows.top_reward) + baseline)


RAO_BLACKWELL_TOP_K = Estimator(
    name="rao_blackwell_top_k",
    description="the student's top k summed exactly, the rest sampled",
    support="full",
    unbiased=True,
    needs=Needs(support="student_top_k", order=1),
    estimate=estimate,
    needs_top_k=True,
)

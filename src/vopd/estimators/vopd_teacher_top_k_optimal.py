"""The optimal baseline for the bucketed reward that a plain server gives."""

from __future__ import annotations

from vopd.functional import optimal_baseline
from vopd.functional.moments import not_none
from vopd.kernels import Estimate, Needs, Rows

from .base import Estimator, policy_gradient
from .bucket import bucket_moments


def estimate(rows: Rows) -> Estimate:
    """A = r_y - [sum_S p w r + (sum_{v not in S} p w) r_rest] / E_p[w], S the teacher's top k."""
    moments = bucket_moments(rows)
    baseline = not_none(moments.top_reward) + optimal_baseline(moments)
    return policy_gradient(rows, not_none(rows.rewards) - baseline, baseline)


VOPD_TEACHER_TOP_K_OPTIMAL = Estimator(
    name="vopd_teacher_top_k_optimal",
    description="optimal baseline on the teacher's top k with one bucket for the rest: a plain server is enough",
    support="top_k",
    unbiased=True,
    needs=Needs(support="teacher_top_k", order=2),
    estimate=estimate,
    needs_top_k=True,
    teacher_scores=True,
)

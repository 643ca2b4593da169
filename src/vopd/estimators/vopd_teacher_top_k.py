"""The value baseline from what a plain server gives: the teacher's top k and a bucket for the rest."""

from __future__ import annotations

from vopd.functional import value_baseline
from vopd.functional.moments import not_none
from vopd.kernels import Estimate, Needs, Rows

from .base import Estimator, policy_gradient
from .bucket import bucket_moments


def estimate(rows: Rows) -> Estimate:
    """A = r_y - (sum_S p r + p_rest r_rest), S the teacher's top k."""
    moments = bucket_moments(rows)
    baseline = not_none(moments.top_reward) + value_baseline(moments)
    return policy_gradient(rows, not_none(rows.rewards) - baseline, baseline)


VOPD_TEACHER_TOP_K = Estimator(
    name="vopd_teacher_top_k",
    description="value baseline on the teacher's top k with one bucket for the rest: a plain server is enough",
    support="top_k",
    unbiased=True,
    needs=Needs(support="teacher_top_k"),
    estimate=estimate,
    needs_top_k=True,
    teacher_scores=True,
)

"""The paper's truncated baseline: both models renormalised on the student's top k."""

from __future__ import annotations

from vopd.functional import renormalised_top_k_baseline
from vopd.functional.moments import not_none
from vopd.kernels import Estimate, Needs, Rows

from .base import Estimator, policy_gradient
from .student_top_k import support_logits


def estimate(rows: Rows) -> Estimate:
    """A = r_y + KL(p~ || q~). Source: arXiv 2605.07865, Eqs. 14-15."""
    baseline = renormalised_top_k_baseline(*support_logits(rows))
    return policy_gradient(rows, not_none(rows.rewards) - baseline, baseline)


VOPD_TOP_K = Estimator(
    name="vopd_top_k",
    description="value baseline with both models renormalised on the student's top k (the paper)",
    support="top_k",
    unbiased=True,
    needs=Needs(support="student_top_k"),
    estimate=estimate,
    needs_top_k=True,
)

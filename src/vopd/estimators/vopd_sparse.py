"""A truncated value baseline without any normaliser: the teacher is needed at k + 1 ids only."""

from __future__ import annotations

from vopd.functional import sparse_top_k_baseline
from vopd.functional.moments import not_none
from vopd.kernels import Estimate, Needs, Rows

from .base import Estimator, centred_policy_gradient
from .student_top_k import support_logits


def estimate(rows: Rows) -> Estimate:
    """A = E_p~[d] - d_y, with p~ the student renormalised on its top k."""
    student, _ = support_logits(rows)
    return centred_policy_gradient(rows, sparse_top_k_baseline(student, -not_none(rows.support_difference)))


VOPD_SPARSE = Estimator(
    name="vopd_sparse",
    description="mean reward under the student's renormalised top k; teacher at k + 1 ids, no normaliser",
    support="top_k",
    unbiased=True,
    needs=Needs(support="student_top_k", full_teacher=False),
    estimate=estimate,
    needs_top_k=True,
)

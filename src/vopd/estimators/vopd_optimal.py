"""The scalar baseline of least variance, in closed form."""

from __future__ import annotations

from vopd.functional import optimal_baseline
from vopd.kernels import Estimate, Needs, Rows

from .base import Estimator, centred_policy_gradient


def estimate(rows: Rows) -> Estimate:
    """A = r_y - E_p[w r] / E_p[w]. Advantages are not centred: never whiten or clip them."""
    return centred_policy_gradient(rows, optimal_baseline(rows.moments()))


VOPD_OPTIMAL = Estimator(
    name="vopd_optimal",
    description="baseline of least variance, E_p[w r] / E_p[w] with w = |e_v - p|^2",
    support="full",
    unbiased=True,
    needs=Needs(order=2),
    estimate=estimate,
)

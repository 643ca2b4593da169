"""The paper's method: the value function, the negative reverse KL, as baseline."""

from __future__ import annotations

from vopd.functional import value_baseline
from vopd.kernels import Estimate, Needs, Rows

from .base import Estimator, centred_policy_gradient


def estimate(rows: Rows) -> Estimate:
    """A = r_y - V = E_p[d] - d_y. Source: arXiv 2605.07865, Eq. 9."""
    return centred_policy_gradient(rows, value_baseline(rows.moments()))


VOPD = Estimator(
    name="vopd",
    description="value baseline -KL(p || q) over the full vocabulary (the paper)",
    support="full",
    unbiased=True,
    needs=Needs(order=1),
    estimate=estimate,
)

"""The exact objective: KL(p || q) backpropagated over the full vocabulary."""

from __future__ import annotations

import torch

from vopd.functional.moments import not_none
from vopd.kernels import Estimate, GradientForm, Needs, Rows

from .base import Estimator


def estimate(rows: Rows) -> Estimate:
    """Token loss KL(p || q); gradient p (d' - E_p[d']): b = 1, a = -E_p[d'] = E_p[r']."""
    reward = rows.moments().reward
    form = GradientForm(
        a=reward,
        b=torch.ones_like(reward),
        ids=rows.sampled_ids.unsqueeze(-1),
        values=torch.zeros_like(reward).unsqueeze(-1),
    )
    return Estimate(loss=-(not_none(rows.top_reward) + reward), form=form)


FULL_RKL = Estimator(
    name="full_rkl",
    description="the exact reverse KL over the full vocabulary, no sampling noise in the token",
    support="full",
    unbiased=True,
    needs=Needs(order=1),
    estimate=estimate,
)

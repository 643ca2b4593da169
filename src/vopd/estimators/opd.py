"""Vanilla on-policy distillation: no baseline."""

from __future__ import annotations

import torch

from vopd.functional.moments import not_none
from vopd.kernels import Estimate, Needs, Rows

from .base import Estimator, policy_gradient


def estimate(rows: Rows) -> Estimate:
    """A = r_y."""
    rewards = not_none(rows.rewards)
    return policy_gradient(rows, rewards, torch.zeros_like(rewards))


OPD = Estimator(
    name="opd",
    description="vanilla OPD: the log-ratio of the sampled token, no baseline",
    support="sampled",
    unbiased=True,
    needs=Needs(),
    estimate=estimate,
    teacher_scores=True,
)

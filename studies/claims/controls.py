"""Controls of the study: what a careful user would not do, kept out of vopd.ESTIMATORS."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import torch
from torch import Tensor

from vopd import training
from vopd.estimators import Estimator, catalogue, checks
from vopd.estimators.policy_gradient import policy_gradient
from vopd.functional.moments import not_none
from vopd.kernels import Estimate, Needs, Rows

CLIP = 2.0
FIXED_ADVANTAGE = -1.0


def _of_rewards(advantage: Callable[[Tensor], Tensor]) -> Callable[[Rows], Estimate]:
    def estimate(rows: Rows) -> Estimate:
        rewards = not_none(rows.rewards)
        return policy_gradient(rows, advantage(rewards), torch.zeros_like(rewards))

    return estimate


def _control(name: str, description: str, unbiased: bool, advantage: Callable[[Tensor], Tensor]) -> Estimator:
    return Estimator(name, description, "sampled", Needs(), _of_rewards(advantage), unbiased)


CONTROLS = {
    # -r exp(log p - sg[log p]) with gradient through r: the gradient is (1 - r) grad log p.
    "opd_undetached": _control(
        "opd_undetached", "vanilla OPD in ratio form without the stop-gradient on r: A = r - 1", True, lambda r: r - 1
    ),
    "opd_clipped": _control(
        "opd_clipped", f"vanilla OPD with rewards clipped to [-{CLIP:g}, {CLIP:g}]", False,
        lambda r: r.clamp(-CLIP, CLIP),
    ),
    "fixed_negative": _control(
        "fixed_negative", f"A = {FIXED_ADVANTAGE:g} for every token: zero expected gradient, noise alone", False,
        lambda r: torch.full_like(r, FIXED_ADVANTAGE),
    ),
}  # fmt: skip


def install() -> None:
    """Make the controls known by name in this process alone."""
    merged = MappingProxyType({**catalogue.ESTIMATORS, **CONTROLS})
    for module in (checks, training.config):
        module.ESTIMATORS = merged  # type: ignore[attr-defined]

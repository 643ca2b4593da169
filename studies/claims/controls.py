"""Controls of the study: what a careful user would not do, estimators of its own that are not in vopd.ESTIMATORS."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vopd.estimators import Estimate, Estimator, Needs, Rows, find_estimator, policy_gradient
from vopd.functional.moments import not_none

CLIP = 2.0
FIXED_ADVANTAGE = -1.0


def _of_rewards(advantage: Callable[[Tensor], Tensor]) -> Callable[[Rows], Estimate]:
    def estimate(rows: Rows) -> Estimate:
        rewards = not_none(rows.rewards)
        return policy_gradient(rows, advantage(rewards), torch.zeros_like(rewards))

    return estimate


def _control(name: str, description: str, unbiased: bool, advantage: Callable[[Tensor], Tensor]) -> Estimator:
    return Estimator(name, description, "sampled", Needs(), _of_rewards(advantage), unbiased)


# -r exp(log p - sg[log p]) with gradient through r: the gradient is (1 - r) grad log p.
UNDETACHED = _control(
    "opd_undetached", "vanilla OPD in ratio form without the stop-gradient on r: A = r - 1", True, lambda r: r - 1
)
CLIPPED = _control(
    "opd_clipped", f"vanilla OPD with rewards clipped to [-{CLIP:g}, {CLIP:g}]", False, lambda r: r.clamp(-CLIP, CLIP)
)
FIXED_NEGATIVE = _control(
    "fixed_negative", f"A = {FIXED_ADVANTAGE:g} for every token: zero expected gradient, noise alone", False,
    lambda r: torch.full_like(r, FIXED_ADVANTAGE),
)  # fmt: skip
CONTROLS = {control.name: control for control in (UNDETACHED, CLIPPED, FIXED_NEGATIVE)}


def estimator_of(name: str) -> Estimator:
    """A control, or an estimator of vopd's."""
    return CONTROLS[name] if name in CONTROLS else find_estimator(name)

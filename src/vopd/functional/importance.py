"""Importance weights between the rollout engine's sampler and the trainer's student."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


def importance_weights(
    trainer_logprobs: Float[Tensor, "*tokens"], rollout_logprobs: Float[Tensor, "*tokens"], cap: float
) -> Float[Tensor, "*tokens"]:
    """Truncated token weights w = min(sg[exp(log p_trainer(y) - log p_rollout(y))], cap).

    Args:
        trainer_logprobs: log p(y) as the trainer computes it, (...); detached here.
        rollout_logprobs: log p(y) as the sampler reported it, (...).
        cap: largest weight. Truncation bounds the variance and costs a small bias.

    Returns:
        (...), without gradient.

    Source: truncated importance sampling, Ionides (2008).
    """
    return (trainer_logprobs - rollout_logprobs).detach().exp().clamp_max(cap)

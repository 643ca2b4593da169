"""Importance weights between the rollout engine's sampler and the trainer's student."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


def importance_weights(
    trainer_logprobs: Float[Tensor, "*tokens"], rollout_logprobs: Float[Tensor, "*tokens"], cap: float
) -> Float[Tensor, "*tokens"]:
    """Truncated importance weights w = min(exp(log p_trainer(y) - log p_rollout(y)), cap), one per token.

    Args:
        trainer_logprobs: log p(y) computed by the trainer, (...); detached here.
        rollout_logprobs: log p(y) reported by the sampler, (...).
        cap: largest weight. Truncation bounds the variance and adds a small bias.

    Returns:
        Shape (...), without gradient.

    Source: truncated importance sampling, Ionides (2008).
    """
    return (trainer_logprobs - rollout_logprobs).detach().exp().clamp_max(cap)

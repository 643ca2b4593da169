"""Closed-form variance of the one-sample policy gradient, in logit space, for any baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .moments import Moments, not_none

if TYPE_CHECKING:
    from jaxtyping import Float


def squared_gradient_norm(moments: Moments) -> Float[Tensor, "*tokens"]:
    """Squared norm of the exact gradient g_v = p_v (V - r_v) of KL(p || q) with respect to the student's logits.

    |g|^2 = sum p^2 r'^2 - 2 V' sum p^2 r' + V'^2 S2, with V' = sum p r'.

    Args:
        moments: fields of shape (...), with the squared sums.

    Returns:
        Shape (...), nats^2.
    """
    return (
        not_none(moments.square_centred_reward_square)
        - 2 * moments.centred_reward * not_none(moments.square_centred_reward)
        + moments.centred_reward.square() * moments.square_prob
    )


def gradient_variance(moments: Moments, baseline: Float[Tensor, "*tokens"]) -> Float[Tensor, "*tokens"]:
    """Variance of the one-sample gradient (r_y - b)(p - e_y) in logit space: the trace of its covariance over y ~ p.

    Equals sum_v p_v w_v (r_v - b)^2 - |g|^2, computed from the moments alone; b = 0 is vanilla OPD. The difference b -
    r_top has the rounding error of both terms (see ``value_baseline``); if you have a centred baseline, use
    ``gradient_variance_from_centred``.

    Args:
        moments: fields of shape (...), with ``top_reward`` and the squared sums.
        baseline: b, (...), on the scale of the rewards.

    Returns:
        Shape (...), nats^2, at least 0.

    Source: Greensmith, Bartlett, Baxter, JMLR 5 (2004), applied to a categorical policy.
    """
    return gradient_variance_from_centred(moments, baseline - not_none(moments.top_reward))


def gradient_variance_from_centred(
    moments: Moments, centred_baseline: Float[Tensor, "*tokens"]
) -> Float[Tensor, "*tokens"]:
    """``gradient_variance`` for a centred baseline b' = b - r_top: sum_v p_v w_v (r'_v - b')^2 - |g|^2.

    Args:
        moments: fields of shape (...), with the squared sums; ``top_reward`` is not needed.
        centred_baseline: b', (...), as returned by the functions named ``centred_``.

    Returns:
        Shape (...), nats^2, at least 0.
    """
    second = (1 + moments.square_prob) * not_none(moments.centred_reward_square)
    second = second - 2 * not_none(moments.square_centred_reward_square)
    cross = moments.weighted_centred_reward
    raw = second - 2 * centred_baseline * cross + centred_baseline.square() * moments.weight
    return (raw - squared_gradient_norm(moments)).clamp_min(0)

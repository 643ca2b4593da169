"""Closed-form variance of the one-sample policy gradient, in logit space, for any baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .moments import Moments, not_none

if TYPE_CHECKING:
    from jaxtyping import Float


def squared_gradient_norm(moments: Moments) -> Float[Tensor, "*tokens"]:
    """|g|^2 of the exact gradient g_v = p_v (V - r_v) of KL(p || q) in the student's logits.

    |g|^2 = sum p^2 r'^2 - 2 V' sum p^2 r' + V'^2 S2 with V' = sum p r'.

    Args:
        moments: with the squared sums, fields of shape (...).

    Returns:
        (...), nats^2.
    """
    return (
        not_none(moments.square_centred_reward_square)
        - 2 * moments.centred_reward * not_none(moments.square_centred_reward)
        + moments.centred_reward.square() * moments.square_prob
    )


def gradient_variance(moments: Moments, baseline: Float[Tensor, "*tokens"]) -> Float[Tensor, "*tokens"]:
    """Trace of the covariance over y ~ p of the token gradient (r_y - b)(p - e_y), in logit space.

    sum_v p_v w_v (r_v - b)^2 - |g|^2, from the moments alone; b = 0 is vanilla OPD. The difference b - r_top is
    taken here with the rounding of both (see ``value_baseline``); ``gradient_variance_from_centred`` is for where it
    is known better.

    Args:
        moments: with ``top_reward`` and the squared sums, fields of shape (...).
        baseline: b, (...), on the scale of the rewards.

    Returns:
        (...), nats^2, not below 0.

    Source: Greensmith, Bartlett, Baxter, JMLR 5 (2004), applied to a categorical policy.
    """
    return gradient_variance_from_centred(moments, baseline - not_none(moments.top_reward))


def gradient_variance_from_centred(
    moments: Moments, centred_baseline: Float[Tensor, "*tokens"]
) -> Float[Tensor, "*tokens"]:
    """``gradient_variance`` of the baseline b = r_top + b': sum_v p_v w_v (r'_v - b')^2 - |g|^2.

    Args:
        moments: with the squared sums, fields of shape (...); ``top_reward`` is not needed.
        centred_baseline: b' = b - r_top, (...), as the functions named ``centred_`` return it.

    Returns:
        (...), nats^2, not below 0.
    """
    second = (1 + moments.square_prob) * not_none(moments.centred_reward_square)
    second = second - 2 * not_none(moments.square_centred_reward_square)
    cross = moments.weighted_centred_reward
    raw = second - 2 * centred_baseline * cross + centred_baseline.square() * moments.weight
    return (raw - squared_gradient_norm(moments)).clamp_min(0)

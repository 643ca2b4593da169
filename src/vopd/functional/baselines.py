"""Control-variate baselines for on-policy distillation, one function an equation.

Every baseline is a function of the state only: it never looks at the sampled token, so subtracting it leaves the
expected gradient as it is, E_p[b grad log p] = 0. A function returns what its name says on the scale of the rewards
that it is given. Those named ``centred_`` return b' = b - r_top, from which the advantage r_y - b = r'_y - b' follows
without the log-normaliser of either model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .losses import truncated_reverse_kl
from .moments import Moments, not_none

if TYPE_CHECKING:
    from jaxtyping import Float

BUCKET_FLOOR = 1e-9
"""Least probability that a truncated teacher distribution is taken to leave outside its top k."""


def value_baseline(moments: Moments) -> Float[Tensor, "*tokens"]:
    """The value function V = E_p[r] = -KL(p || q).

    Computed as r_top + V' (``centred_value_baseline``). r_top brings the rounding of both log-normalisers, in float32
    an absolute error of up to 4e-7 (1 + |r_top|): where the student is so certain that V' is less, nothing of V' is
    left, and r_y - V of the top token is noise.

    Args:
        moments: with ``top_reward``, fields of shape (...); the squared sums are not needed.

    Returns:
        V, shape (...), nats.

    Source: "KL for a KL", arXiv 2605.07865, Eq. 9.
    """
    return not_none(moments.top_reward) + centred_value_baseline(moments)


def centred_value_baseline(moments: Moments) -> Float[Tensor, "*tokens"]:
    """V' = V - r_top = sum p r', which keeps its digits however certain the student is.

    Args:
        moments: fields of shape (...); neither the squared sums nor ``top_reward`` are needed.

    Returns:
        V - r_top, shape (...), nats.
    """
    return moments.centred_reward


def optimal_baseline(moments: Moments) -> Float[Tensor, "*tokens"]:
    """The scalar baseline of least gradient variance in logit space, b* = E_p[w r] / E_p[w].

    w_v = |e_v - p|^2 is the squared norm of the score of token v. Computed as r_top + b*'
    (``centred_optimal_baseline``), with the rounding of r_top as in ``value_baseline``.

    Args:
        moments: with ``top_reward``, fields of shape (...).

    Returns:
        b*, shape (...), nats.

    Source: Greensmith, Bartlett, Baxter, JMLR 5 (2004); the weight as in arXiv 2602.07078.
    """
    return not_none(moments.top_reward) + centred_optimal_baseline(moments)


def centred_optimal_baseline(moments: Moments) -> Float[Tensor, "*tokens"]:
    """b*' = b* - r_top = E_p[w r'] / E_p[w].

    With m and s2 the sums of p and p^2 over every token but the top one, it is
    [(1 + S2) sum p r' - 2 sum p^2 r'] / (p_top m + m - s2), which keeps 1e-5 in float32 down to 1 - p_top = 1e-10.
    A student that is certain to the last digit has no variance to reduce: 0.

    Args:
        moments: fields of shape (...); ``top_reward`` is not needed.

    Returns:
        b* - r_top, shape (...), nats.
    """
    certain = moments.weight <= 0
    return moments.weighted_centred_reward.div(moments.weight.masked_fill(certain, 1)).masked_fill(certain, 0)


def renormalised_top_k_baseline(
    student_top_k_logits: Float[Tensor, "*tokens k"], teacher_top_k_logits: Float[Tensor, "*tokens k"]
) -> Float[Tensor, "*tokens"]:
    """The paper's truncated baseline -KL(p~ || q~), both models renormalised on the student's top k.

    0 at k = 1, the value function at k = V.

    Args:
        student_top_k_logits: (..., k), logits or log-probabilities (any shift per row).
        teacher_top_k_logits: (..., k), at the same ids.

    Returns:
        (...), nats.

    Source: arXiv 2605.07865, Eqs. 14-15.
    """
    return -truncated_reverse_kl(student_top_k_logits, teacher_top_k_logits)


def sparse_top_k_baseline(
    student_top_k_logits: Float[Tensor, "*tokens k"], top_k_rewards: Float[Tensor, "*tokens k"]
) -> Float[Tensor, "*tokens"]:
    """E_p~[r]: the mean reward under the student renormalised on its own top k.

    Follows any shift of the rewards, so centred rewards give the centred baseline, and the teacher is needed at the
    k ids only (and at the sampled one), without its normaliser.

    Args:
        student_top_k_logits: (..., k), logits or log-probabilities.
        top_k_rewards: (..., k), rewards at those ids up to a constant per row.

    Returns:
        (...), on the scale of ``top_k_rewards``, nats.
    """
    probs = torch.softmax(student_top_k_logits, dim=-1)
    return (probs * top_k_rewards.masked_fill(probs == 0, 0)).sum(-1)


def bucket_log_ratio(
    top_k_teacher_logprobs: Float[Tensor, "*tokens k"], bucket_student_prob: Float[Tensor, "*tokens"]
) -> Float[Tensor, "*tokens"]:
    """Reward of the bucket of all tokens outside the teacher's top k: log q(bucket) - log p(bucket).

    q(bucket) = max(1 - sum q, 1e-9) over the top k; p(bucket) must be summed over the tokens outside, never taken as
    1 - sum. Where p(bucket) = 0 the bucket is never sampled and its reward is given as 0.

    Args:
        top_k_teacher_logprobs: (..., k), -inf for an absent entry.
        bucket_student_prob: (...), p(bucket).

    Returns:
        (...), nats.
    """
    bucket_teacher_prob = (1 - top_k_teacher_logprobs.exp().sum(-1)).clamp_min(BUCKET_FLOOR)
    never = bucket_student_prob <= 0
    return (bucket_teacher_prob.log() - bucket_student_prob.masked_fill(never, 1).log()).masked_fill(never, 0)


def outside_mean_baseline(
    outside_prob: Float[Tensor, "*tokens"],
    outside_reward_sum: Float[Tensor, "*tokens"],
    otherwise: Float[Tensor, "*tokens"],
) -> Float[Tensor, "*tokens"]:
    """Mean reward of the tokens outside the support S: sum_{v not in S} p_v r_v / p(S^c).

    Args:
        outside_prob: (...), p(S^c).
        outside_reward_sum: (...), sum of p r over the tokens outside.
        otherwise: (...), what to return where nothing is outside (any state-only value will do there).

    Returns:
        (...), on the scale of the rewards in ``outside_reward_sum``, nats.
    """
    nothing = outside_prob <= 0
    return torch.where(nothing, otherwise, outside_reward_sum / outside_prob.masked_fill(nothing, 1))

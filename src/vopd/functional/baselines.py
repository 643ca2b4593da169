"""Control-variate baselines for on-policy distillation, one function per equation.

A baseline depends on the state only, never on the sampled token. Subtracting it therefore does not change the expected
gradient: E_p[b grad log p] = 0. A baseline is on the scale of the rewards it is computed from. Functions named
``centred_`` return b' = b - r_top, which gives the advantage r_y - b = r'_y - b' without the log-normalizer of either
model.
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
"""Lower bound on the teacher's probability outside its top k."""


def value_baseline(moments: Moments) -> Float[Tensor, "*tokens"]:
    """The value function V = E_p[r] = -KL(p || q).

    Computed as r_top + V' (``centred_value_baseline``). r_top carries the rounding error of both log-normalizers: up to
    4e-7 (1 + |r_top|) in float32. Where the student is so certain that V' is smaller than that, V' is lost and r_y - V
    of the top token is noise; use ``centred_value_baseline`` there.

    Args:
        moments: fields of shape (...), with ``top_reward``; the squared sums are not needed.

    Returns:
        V, shape (...), nats.

    Source: "KL for a KL", arXiv 2605.07865, Eq. 9.
    """
    return not_none(moments.top_reward) + centred_value_baseline(moments)


def centred_value_baseline(moments: Moments) -> Float[Tensor, "*tokens"]:
    """The value function minus r_top, V' = sum p r', which stays precise however certain the student is.

    Args:
        moments: fields of shape (...); neither the squared sums nor ``top_reward`` are needed.

    Returns:
        V - r_top, shape (...), nats.
    """
    return moments.centred_reward


def optimal_baseline(moments: Moments) -> Float[Tensor, "*tokens"]:
    """The scalar baseline with the least gradient variance in logit space, ``E_p[w r] / E_p[w]``.

    w_v = |e_v - p|^2 is the squared norm of the score function of token v. Computed as r_top +
    ``centred_optimal_baseline``, with the rounding error of r_top described in ``value_baseline``.

    Args:
        moments: fields of shape (...), with ``top_reward``.

    Returns:
        The optimal baseline, shape (...), nats.

    Source: Greensmith, Bartlett, Baxter, JMLR 5 (2004); the weight w is that of arXiv 2602.07078.
    """
    return not_none(moments.top_reward) + centred_optimal_baseline(moments)


def centred_optimal_baseline(moments: Moments) -> Float[Tensor, "*tokens"]:
    """The optimal baseline minus r_top, ``E_p[w r'] / E_p[w]``.

    Computed as ``[(1 + S2) sum p r' - 2 sum p^2 r'] / (p_top m + m - s2)``, with m and s2 the sums of p and p^2 over
    the rest and S2 the sum of p^2 over all tokens. In float32 the relative error stays below 1e-5 down to 1 - p_top =
    1e-10. 0 where the student puts all probability on one token: there is no variance to reduce.

    Args:
        moments: fields of shape (...); ``top_reward`` is not needed.

    Returns:
        The optimal baseline minus r_top, shape (...), nats.
    """
    certain = moments.weight <= 0
    return moments.weighted_centred_reward.div(moments.weight.masked_fill(certain, 1)).masked_fill(certain, 0)


def renormalised_top_k_baseline(
    student_top_k_logits: Float[Tensor, "*tokens k"], teacher_top_k_logits: Float[Tensor, "*tokens k"]
) -> Float[Tensor, "*tokens"]:
    """The paper's truncated baseline ``-KL(p~ || q~)``: both models renormalized on the student's top k.

    It is 0 for k = 1 and the value function for k = V.

    Args:
        student_top_k_logits: (..., k), logits or log-probabilities (any shift per row).
        teacher_top_k_logits: (..., k), at the same ids, likewise.

    Returns:
        Shape (...), nats.

    Source: arXiv 2605.07865, Eqs. 14-15.
    """
    return -truncated_reverse_kl(student_top_k_logits, teacher_top_k_logits)


def sparse_top_k_baseline(
    student_top_k_logits: Float[Tensor, "*tokens k"], top_k_rewards: Float[Tensor, "*tokens k"]
) -> Float[Tensor, "*tokens"]:
    """The mean reward under the student renormalized on its own top k, ``E_p~[r]``.

    A constant added to the rewards is added to the baseline, so centred rewards give a centred baseline. The teacher is
    needed at the k ids and at the sampled token only, and its normalizer is not needed.

    Args:
        student_top_k_logits: (..., k), logits or log-probabilities.
        top_k_rewards: (..., k), rewards at those ids, up to a constant per row.

    Returns:
        Shape (...), on the scale of ``top_k_rewards``, nats.
    """
    probs = torch.softmax(student_top_k_logits, dim=-1)
    return (probs * top_k_rewards.masked_fill(probs == 0, 0)).sum(-1)


def bucket_log_ratio(
    top_k_teacher_logprobs: Float[Tensor, "*tokens k"], bucket_student_prob: Float[Tensor, "*tokens"]
) -> Float[Tensor, "*tokens"]:
    """Reward of the bucket of all tokens outside the teacher's top k: log q(bucket) - log p(bucket).

    q(bucket) = max(1 - sum of q over the top k, 1e-9). p(bucket) must be summed over the tokens outside the top k:
    1 - sum over the top k loses its digits. Where p(bucket) = 0 the bucket is never sampled and its reward is 0.

    Args:
        top_k_teacher_logprobs: (..., k), -inf for a missing entry.
        bucket_student_prob: (...), p(bucket).

    Returns:
        Shape (...), nats.
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
        otherwise: (...), returned where p(S^c) = 0; any value that does not depend on the sampled token is correct.

    Returns:
        Shape (...), on the scale of the rewards in ``outside_reward_sum``, nats.
    """
    nothing = outside_prob <= 0
    return torch.where(nothing, otherwise, outside_reward_sum / outside_prob.masked_fill(nothing, 1))

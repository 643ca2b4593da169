"""Control-variate baselines for on-policy distillation, one function an equation.

Every baseline is a function of the state only: it never looks at the sampled token, so subtracting it leaves the
expected gradient as it is, E_p[b grad log p] = 0. Baselines from ``Moments`` are returned centred, b' = b - r_top:
the advantage r_y - b = r'_y - b' then needs the log-normaliser of neither model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .losses import truncated_reverse_kl
from .moments import Moments

REST_FLOOR = 1e-9
"""Least probability that a truncated teacher distribution is taken to leave outside its top k."""


def value_baseline(moments: Moments) -> Tensor:
    """The value function V = E_p[r] = -KL(p || q), centred: V - r_top = sum p r'.

    Args:
        moments: fields of shape (...); the squared sums are not needed.

    Returns:
        V - r_top, shape (...), nats.

    Source: "KL for a KL", arXiv 2605.07865, Eq. 9.
    """
    return moments.reward


def optimal_baseline(moments: Moments) -> Tensor:
    """The scalar baseline of least gradient variance in logit space, b* = E_p[w r] / E_p[w], centred.

    w_v = |e_v - p|^2 is the squared norm of the score of token v. With m and s2 the sums of p and p^2 over every
    token but the top one, b* - r_top = [(1 + S2) sum p r' - 2 sum p^2 r'] / (p_top m + m - s2), which keeps 1e-5 in
    float32 down to 1 - p_top = 1e-10. A student that is certain to the last digit has no variance to reduce: 0.

    Args:
        moments: fields of shape (...).

    Returns:
        b* - r_top, shape (...), nats.

    Source: Greensmith, Bartlett, Baxter, JMLR 5 (2004); the weight as in arXiv 2602.07078.
    """
    certain = moments.weight <= 0
    return moments.weighted_reward.div(moments.weight.masked_fill(certain, 1)).masked_fill(certain, 0)


def renormalised_top_k_baseline(student_top_k_logits: Tensor, teacher_top_k_logits: Tensor) -> Tensor:
    """The paper's truncated baseline -KL(p~ || q~), both models renormalised on the student's top k.

    0 at k = 1, the value function at k = V. Not centred: it is on the scale of the rewards themselves.

    Args:
        student_top_k_logits: (..., k), logits or log-probabilities (any shift per row).
        teacher_top_k_logits: (..., k), at the same ids.

    Returns:
        (...), nats.

    Source: arXiv 2605.07865, Eqs. 14-15.
    """
    return -truncated_reverse_kl(student_top_k_logits, teacher_top_k_logits)


def sparse_top_k_baseline(student_top_k_logits: Tensor, top_k_rewards: Tensor) -> Tensor:
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


def rest_log_ratio(top_k_teacher_logprobs: Tensor, rest_student_prob: Tensor) -> Tensor:
    """Reward of the bucket of all tokens outside the teacher's top k: log q_rest - log p_rest.

    q_rest = max(1 - sum q, 1e-9) over the top k; p_rest must be summed over the tokens outside, never taken as
    1 - sum. Where p_rest = 0 the bucket is never sampled and its reward is given as 0.

    Args:
        top_k_teacher_logprobs: (..., k), -inf for an absent entry.
        rest_student_prob: (...), p_rest.

    Returns:
        (...), nats.
    """
    rest_teacher_prob = (1 - top_k_teacher_logprobs.exp().sum(-1)).clamp_min(REST_FLOOR)
    never = rest_student_prob <= 0
    return (rest_teacher_prob.log() - rest_student_prob.masked_fill(never, 1).log()).masked_fill(never, 0)


def rest_mean_baseline(rest_prob: Tensor, rest_reward: Tensor, otherwise: Tensor) -> Tensor:
    """Mean reward of the tokens outside the support: sum_{v not in S} p_v r_v / p(S^c).

    Args:
        rest_prob: (...), p(S^c).
        rest_reward: (...), sum of p r over the tokens outside.
        otherwise: (...), what to return where nothing is outside (any state-only value will do there).

    Returns:
        (...), on the scale of the rewards.
    """
    nothing = rest_prob <= 0
    return torch.where(nothing, otherwise, rest_reward / rest_prob.masked_fill(nothing, 1))

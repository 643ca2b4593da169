"""Moments of the reward under the student, centred on the student's most likely token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from vopd.errors import ConfigurationError

if TYPE_CHECKING:
    from jaxtyping import Float

Statistic = TypeVar("Statistic")


@dataclass(frozen=True)
class Moments:
    """Sums over a next-token distribution that every full-vocabulary baseline is a function of.

    With p the student's probabilities, r the reward of each token and ``top`` the student's most likely token,
    r' = r - r_top is its centred reward. All fields have one entry a token. ``rest`` means every token but ``top``:
    sums that leave the top token out keep their digits when the student is nearly certain, where 1 - p_top is lost in
    rounding. ``square_`` before a name stands for p^2 instead of p, ``_square`` behind it for r'^2 instead of r'.

    Attributes:
        top_prob: p_top.
        rest_prob: sum of p over the rest.
        centred_reward: sum of p r' (the top token contributes exactly 0).
        rest_square_prob: sum of p^2 over the rest; None unless the optimal baseline is wanted.
        square_centred_reward: sum of p^2 r'; likewise.
        centred_reward_square: sum of p r'^2; None unless the variance is wanted.
        square_centred_reward_square: sum of p^2 r'^2; likewise.
        top_reward: r_top, or None where only differences of rewards are known.
    """

    top_prob: Float[Tensor, "*tokens"]
    rest_prob: Float[Tensor, "*tokens"]
    centred_reward: Float[Tensor, "*tokens"]
    rest_square_prob: Float[Tensor, "*tokens"] | None = None
    square_centred_reward: Float[Tensor, "*tokens"] | None = None
    centred_reward_square: Float[Tensor, "*tokens"] | None = None
    square_centred_reward_square: Float[Tensor, "*tokens"] | None = None
    top_reward: Float[Tensor, "*tokens"] | None = None

    @property
    def square_prob(self) -> Float[Tensor, "*tokens"]:
        """S2 = sum of p^2 over the whole vocabulary."""
        return self.top_prob.square() + not_none(self.rest_square_prob)

    @property
    def weight(self) -> Float[Tensor, "*tokens"]:
        """E_p[w] = 1 - S2 for the score-function weight w_v = |e_v - p|^2 = 1 - 2 p_v + S2, without cancellation."""
        return self.rest_prob * (1 + self.top_prob) - not_none(self.rest_square_prob)

    @property
    def weighted_centred_reward(self) -> Float[Tensor, "*tokens"]:
        """E_p[w r'] = (1 + S2) sum p r' - 2 sum p^2 r'."""
        return (1 + self.square_prob) * self.centred_reward - 2 * not_none(self.square_centred_reward)


def not_none(value: Statistic | None) -> Statistic:
    """The statistic.

    Raises:
        ConfigurationError: it was not computed, since nobody asked for it.
    """
    if value is None:
        raise ConfigurationError(
            "a statistic was read that was not computed: the needs of an estimator have to name what it reads, "
            "Needs(order=1) for the value baseline, order=2 for the optimal one, a support for its columns"
        )
    return value


def moments(student_logits: Float[Tensor, "*tokens V"], teacher_logits: Float[Tensor, "*tokens V"]) -> Moments:
    """Computes the moments of the log-ratio reward r = log q - log p from dense logits.

    The reference for the fused kernels, and the way in for callers who hold full logits:
    ``optimal_baseline(moments(student_logits, teacher_logits))``.

    Args:
        student_logits: (..., V), any shift per row.
        teacher_logits: (..., V), same tokens in the same order.

    Returns:
        Moments with fields of shape (...), in the inputs' dtype. Gradient flows through them; callers that use a
        baseline in a loss detach it.
    """
    student_logprobs = torch.log_softmax(student_logits, dim=-1)
    rewards = torch.log_softmax(teacher_logits, dim=-1) - student_logprobs
    top_ids = student_logits.argmax(dim=-1, keepdim=True)
    probs = student_logprobs.exp()
    rest = probs.scatter(-1, top_ids, 0)
    difference = student_logits - teacher_logits
    # A token that the student excludes (-inf) has no mass, whatever its reward.
    centred = (difference.gather(-1, top_ids) - difference).masked_fill(rest == 0, 0)
    return Moments(
        top_prob=probs.gather(-1, top_ids).squeeze(-1),
        rest_prob=rest.sum(-1),
        rest_square_prob=rest.square().sum(-1),
        centred_reward=(rest * centred).sum(-1),
        square_centred_reward=(rest.square() * centred).sum(-1),
        centred_reward_square=(rest * centred.square()).sum(-1),
        square_centred_reward_square=(rest.square() * centred.square()).sum(-1),
        top_reward=rewards.gather(-1, top_ids).squeeze(-1),
    )


def bucketed_moments(
    top_prob: Float[Tensor, "*tokens"],
    top_reward: Float[Tensor, "*tokens"],
    support_probs: Float[Tensor, "*tokens k"],
    support_rewards: Float[Tensor, "*tokens k"],
    other_prob: Float[Tensor, "*tokens"],
    other_square_prob: Float[Tensor, "*tokens"] | None,
    bucket_reward: Float[Tensor, "*tokens"],
) -> Moments:
    """Moments of a reward known one by one on a support S and by a single value for the bucket of all other tokens.

    With these, ``value_baseline`` is sum_S p r + p(bucket) r_bucket and ``optimal_baseline`` is
    [sum_S p w r + (sum_{v not in S} p w) r_bucket] / E_p[w]: the baselines that a plain teacher server allows.

    Args:
        top_prob: probability of the student's most likely token, (...).
        top_reward: its reward: its own if it is in the support, else ``bucket_reward``, (...).
        support_probs: p on the support without the top token, 0 in columns that do not count, (..., k).
        support_rewards: r at the same tokens, (..., k).
        other_prob: sum of p over the tokens of the bucket without the top one, (...).
        other_square_prob: sum of p^2 over the same tokens, (...), or None to leave out the squared sums.
        bucket_reward: r_bucket, (...).
    """
    centred = torch.where(support_probs > 0, support_rewards - top_reward.unsqueeze(-1), 0)
    bucket = bucket_reward - top_reward
    squares: dict[str, Tensor] = {}
    if other_square_prob is not None:
        support_square = support_probs.square()
        squares["rest_square_prob"] = support_square.sum(-1) + other_square_prob
        squares["square_centred_reward"] = (support_square * centred).sum(-1) + other_square_prob * bucket
    return Moments(
        top_prob=top_prob,
        rest_prob=support_probs.sum(-1) + other_prob,
        centred_reward=(support_probs * centred).sum(-1) + other_prob * bucket,
        top_reward=top_reward,
        **squares,
    )

"""Moments of the reward under the student, centred on the reward of the student's most likely token."""

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
    """The sums over a next-token distribution from which every full-vocabulary baseline is computed.

    p are the student's probabilities, r the rewards, ``top`` is the student's most likely token, and r' = r - r_top is
    the centred reward. Every field has one entry per token. ``rest`` means all tokens except ``top``: sums without the
    top token stay precise when the student is nearly certain, where 1 - p_top is lost to rounding. A name that begins
    with ``square_`` has p^2 in place of p; one that ends in ``_square`` has r'^2 in place of r'.

    Attributes:
        top_prob: p_top.
        rest_prob: sum of p over the rest.
        centred_reward: sum of p r' (the top token contributes exactly 0).
        rest_square_prob: sum of p^2 over the rest; needed for the optimal baseline, else None.
        square_centred_reward: sum of p^2 r'; needed for the optimal baseline, else None.
        centred_reward_square: sum of p r'^2; needed for the variance, else None.
        square_centred_reward_square: sum of p^2 r'^2; needed for the variance, else None.
        top_reward: r_top; None if only differences of rewards are known.
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
        """E_p[w] = 1 - S2 for the weight w_v = |e_v - p|^2 = 1 - 2 p_v + S2, computed without cancellation."""
        return self.rest_prob * (1 + self.top_prob) - not_none(self.rest_square_prob)

    @property
    def weighted_centred_reward(self) -> Float[Tensor, "*tokens"]:
        """E_p[w r'] = (1 + S2) sum p r' - 2 sum p^2 r'."""
        return (1 + self.square_prob) * self.centred_reward - 2 * not_none(self.square_centred_reward)


def not_none(value: Statistic | None) -> Statistic:
    """Return the statistic.

    Raises:
        ConfigurationError: it is None: it was not requested, so it was not computed.
    """
    if value is None:
        raise ConfigurationError(
            "the estimator reads a statistic that was not computed: request it in needs, with Needs(order=1) for the "
            "value baseline, order=2 for the optimal baseline, support=... for columns of a top k"
        )
    return value


def moments(student_logits: Float[Tensor, "*tokens V"], teacher_logits: Float[Tensor, "*tokens V"]) -> Moments:
    """Compute the moments of the log-ratio reward r = log q - log p from full logits.

    Baselines take these: ``optimal_baseline(moments(student_logits, teacher_logits))``. The fused kernels are tested
    against this function. Gradient flows through the result: detach a baseline before you use it in a loss.

    Args:
        student_logits: (..., V), any shift per row.
        teacher_logits: (..., V), same tokens in the same order.

    Returns:
        Moments with fields of shape (...), in the dtype of the inputs.
    """
    student_logprobs = torch.log_softmax(student_logits, dim=-1)
    rewards = torch.log_softmax(teacher_logits, dim=-1) - student_logprobs
    top_ids = student_logits.argmax(dim=-1, keepdim=True)
    probs = student_logprobs.exp()
    rest = probs.scatter(-1, top_ids, 0)
    difference = student_logits - teacher_logits
    # A token that the student excludes (-inf) has probability 0 and contributes nothing, whatever its reward.
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
    """Moments of a reward that is known for each token of a support S and has one value for all other tokens.

    All other tokens form the bucket. With these moments ``value_baseline`` is sum_S p r + p(bucket) r_bucket, and
    ``optimal_baseline`` is [sum_S p w r + (sum_{v not in S} p w) r_bucket] / E_p[w]. They need only the top k that a
    server returns.

    Args:
        top_prob: probability of the student's most likely token, (...).
        top_reward: reward of that token if it is in the support, else ``bucket_reward``, (...).
        support_probs: p on the support without the top token, 0 in unused columns, (..., k).
        support_rewards: r at the same tokens, (..., k).
        other_prob: sum of p over the bucket without the top token, (...).
        other_square_prob: sum of p^2 over the same tokens, (...); None leaves out the squared sums.
        bucket_reward: r_bucket, (...).

    Returns:
        Moments with fields of shape (...).
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

"""Group advantages: a completion's reward minus the mean reward of the other completions of its prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def leave_one_out_advantages(
    rewards: Float[Tensor, "N F"], weights: Float[Tensor, " F"], num_generations: int
) -> Float[Tensor, " N"]:
    """Leave-one-out advantages: a_i = sum_f w_f (R_if - mean of R_jf over the other completions j of the group).

    The baseline of a completion does not depend on that completion. The loss -a log p(y), summed over the tokens,
    therefore has the expected gradient of -sum_f w_f E[R_f]. It is unbiased, unlike a mean that includes the completion
    itself, and is never divided by the standard deviation. A missing reward (NaN) has advantage 0 and is left out of
    the mean of the others; so has a reward that is the only one of its group.

    Args:
        rewards: (N, F): the `num_generations` completions of the first prompt, then those of the next; NaN if missing.
        weights: (F,), in nats per unit of reward; the teacher's log-ratios have weight 1.
        num_generations: size of a group.

    Returns:
        Shape (N,), float32, without gradient, nats.

    Source: REINFORCE leave-one-out, Kool, van Hoof and Welling (2019).
    """
    grouped = rewards.detach().double().view(-1, num_generations, rewards.shape[-1])
    known = ~grouped.isnan()
    # Relative to the group's smallest reward, so that equal rewards differ by exactly 0.
    least = grouped.masked_fill(~known, torch.inf).amin(1, keepdim=True)
    above = (grouped - least).masked_fill(~known, 0)
    count = known.sum(1, keepdim=True)
    others = (above.sum(1, keepdim=True) - above) / (count - 1).clamp(min=1)
    advantages = (above - others).masked_fill(~known | (count < 2), 0)
    return (advantages @ weights.double().to(advantages.device)).reshape(-1).float()


def groups_without_spread(rewards: Float[Tensor, "N F"], num_generations: int) -> Bool[Tensor, " N//{num_generations}"]:
    """Whether every reward function gives all completions of a group the same reward.

    Args:
        rewards: (N, F), as in ``leave_one_out_advantages``; missing rewards (NaN) are ignored.
        num_generations: size of a group.

    Returns:
        Shape (N / num_generations,), booleans.
    """
    grouped = rewards.detach().view(-1, num_generations, rewards.shape[-1])
    known = ~grouped.isnan()
    most = grouped.masked_fill(~known, -torch.inf).amax(1)
    least = grouped.masked_fill(~known, torch.inf).amin(1)
    return (most <= least).all(-1)

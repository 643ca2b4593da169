"""Group advantages: a completion's reward less the mean reward of the other completions of its prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def leave_one_out_advantages(
    rewards: Float[Tensor, "N F"], weights: Float[Tensor, " F"], num_generations: int
) -> Float[Tensor, " N"]:
    """a_i = sum_f w_f (R_if - mean over the group's others j of R_jf), (N,) float32, detached.

    The baseline of a completion does not depend on it, so -a log p(y), summed over its tokens, has the expected
    gradient of -sum_f w_f E[R_f]: unbiased, unlike a mean that counts the completion itself, and never divided by
    the spread. A reward that a function has none of (NaN) gives nothing and counts in nobody's mean; the only one of
    its group gives nothing either.

    Args:
        rewards: (N, F), in order, `num_generations` completions of one prompt after the other; NaN where there is none.
        weights: (F,), in nats a unit of reward: the teacher's log-ratios have weight 1.
        num_generations: size of a group.

    Source: REINFORCE leave-one-out, Kool, van Hoof and Welling (2019).
    """
    grouped = rewards.detach().double().view(-1, num_generations, rewards.shape[-1])
    known = ~grouped.isnan()
    # From the group's least reward, so that equal ones differ by exactly 0.
    least = grouped.masked_fill(~known, torch.inf).amin(1, keepdim=True)
    above = (grouped - least).masked_fill(~known, 0)
    count = known.sum(1, keepdim=True)
    others = (above.sum(1, keepdim=True) - above) / (count - 1).clamp(min=1)
    advantages = (above - others).masked_fill(~known | (count < 2), 0)
    return (advantages @ weights.double().to(advantages.device)).reshape(-1).float()


def groups_without_spread(rewards: Float[Tensor, "N F"], num_generations: int) -> Bool[Tensor, " N//{num_generations}"]:
    """Whether no function tells one completion of a group from another, (N / num_generations,) booleans.

    Args:
        rewards: (N, F) as in ``leave_one_out_advantages``; those that are missing (NaN) are left out.
        num_generations: size of a group.
    """
    grouped = rewards.detach().view(-1, num_generations, rewards.shape[-1])
    known = ~grouped.isnan()
    most = grouped.masked_fill(~known, -torch.inf).amax(1)
    least = grouped.masked_fill(~known, torch.inf).amin(1)
    return (most <= least).all(-1)

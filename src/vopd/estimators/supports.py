"""Scores at the support columns: the student's top k, or the teacher's top k plus one bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vopd.functional import Moments, bucket_log_ratio, bucketed_moments
from vopd.functional.moments import not_none
from vopd.kernels import Rows

if TYPE_CHECKING:
    from jaxtyping import Float


def support_logits(rows: Rows) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N K"]]:
    """Student and teacher logits on S, each up to a constant per row, (N, K); -inf in columns outside S.

    The teacher's are computed as log p - d', which does not need its normalizer.
    """
    student = rows.support_logprobs.masked_fill(~rows.in_support, -torch.inf)
    return student, student - not_none(rows.support_difference)


def bucket_rewards(rows: Rows) -> tuple[Float[Tensor, "N K"], Float[Tensor, " N"]]:
    """Rewards at the columns, (N, K), 0 outside the support, and of the bucket, (N,), in nats."""
    teacher = not_none(rows.support_teacher_logprobs).masked_fill(~rows.in_support, -torch.inf)
    # A token that the student excludes stays in the teacher's sum, but gets no reward.
    counted = rows.in_support & (rows.support_logprobs > -torch.inf)
    rewards = (teacher - rows.support_logprobs).masked_fill(~counted, 0)
    top_prob = rows.support_logprobs[:, 0].exp()
    bucket_prob = rows.other_prob + top_prob.masked_fill(rows.in_support[:, 0], 0)
    return rewards, bucket_log_ratio(teacher, bucket_prob)


def bucket_moments(rows: Rows) -> Moments:
    """Moments of the bucketed reward, from which value and optimal baselines on the teacher's top k are computed."""
    rewards, bucket_reward = bucket_rewards(rows)
    probs = rows.support_logprobs.exp().masked_fill(~rows.in_support, 0)
    return bucketed_moments(
        top_prob=rows.support_logprobs[:, 0].exp(),
        top_reward=torch.where(rows.in_support[:, 0], rewards[:, 0], bucket_reward),
        support_probs=probs[:, 1:],
        support_rewards=rewards[:, 1:],
        other_prob=rows.other_prob,
        other_square_prob=rows.other_square_prob,
        bucket_reward=bucket_reward,
    )

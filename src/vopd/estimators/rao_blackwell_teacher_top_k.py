"""Rao-Blackwell on the teacher's top k: near the exact gradient from what a plain server gives."""

from __future__ import annotations

from vopd.functional.moments import not_none
from vopd.kernels import Estimate, Needs, Rows

from .base import Estimator, rao_blackwell
from .bucket import bucket_rewards


def estimate(rows: Rows) -> Estimate:
    """b = r_rest = log(q_rest / p_rest), the reward of the bucket outside S."""
    rewards, bucket_reward = bucket_rewards(rows)
    return rao_blackwell(rows, rewards, not_none(rows.rewards), bucket_reward).with_baseline(bucket_reward)


RAO_BLACKWELL_TEACHER_TOP_K = Estimator(
    name="rao_blackwell_teacher_top_k",
    description="the teacher's top k summed exactly, the rest sampled: a plain server is enough",
    support="top_k",
    unbiased=True,
    needs=Needs(support="teacher_top_k"),
    estimate=estimate,
    needs_top_k=True,
    teacher_scores=True,
)

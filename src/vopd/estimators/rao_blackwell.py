"""Rao-Blackwell estimators: the tokens of a support are summed exactly, all others are sampled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from vopd.functional import centred_value_baseline, outside_mean_baseline, policy_gradient_loss
from vopd.functional.moments import not_none
from vopd.kernels import Estimate, GradientForm, Needs, Rows

from .base import Estimator, append
from .supports import bucket_rewards

if TYPE_CHECKING:
    from jaxtyping import Float


def rao_blackwell(
    rows: Rows,
    support_rewards: Float[Tensor, "N K"],
    sampled_rewards: Float[Tensor, " N"],
    baseline: Float[Tensor, " N"],
) -> Estimate:
    """Estimate that sums the support exactly and samples all other tokens (``functional.rao_blackwell_loss``).

    With c_v = p_v (r_v - b) on S and c_y = w (r_y - b) if y is not in S, the gradient with respect to the logits is
    (sum c) p - c at S and y.

    Args:
        rows: statistics of N tokens; ``rows.in_support`` is S.
        support_rewards: r at the columns, (N, K), up to a constant per row, nats.
        sampled_rewards: r_y, (N,), on the same scale.
        baseline: b, (N,), on the same scale; must not depend on the sampled token.

    Returns:
        Loss and gradient form of the N tokens.
    """
    summed = rows.support_logprobs.exp() * (support_rewards - baseline.unsqueeze(-1))
    summed = summed.masked_fill(~rows.in_support, 0)
    sampled_in_support = ((rows.support_ids == rows.sampled_ids.unsqueeze(-1)) & rows.in_support).any(-1)
    advantages = sampled_rewards - baseline
    sampled = (advantages * rows.importance).masked_fill(sampled_in_support, 0)
    form = GradientForm(
        a=summed.sum(-1) + sampled,
        ids=append(rows.support_ids, rows.sampled_ids),
        values=-append(summed, sampled),
    )
    # 0 log 0 = 0 for a token that the student excludes.
    entropies = (summed * rows.support_logprobs).masked_fill(summed == 0, 0)
    loss = policy_gradient_loss(rows.student_logprobs, sampled) - entropies.sum(-1)
    return Estimate(loss=loss, form=form, advantages=advantages)


def _rao_blackwell_top_k(rows: Rows) -> Estimate:
    """b = mean of r outside S, from the teacher's full rows; all on the scale of centred rewards r' = -d'."""
    otherwise = centred_value_baseline(rows.moments())
    baseline = outside_mean_baseline(rows.other_prob, -not_none(rows.other_difference), otherwise)
    result = rao_blackwell(rows, -not_none(rows.support_difference), -not_none(rows.sampled_difference), baseline)
    return result.with_baseline(not_none(rows.top_reward) + baseline)


RAO_BLACKWELL_TOP_K = Estimator(
    name="rao_blackwell_top_k",
    description="the student's top k summed exactly, all other tokens sampled",
    support="full",
    needs=Needs(support="student_top_k", order=1),
    estimate=_rao_blackwell_top_k,
    formula="the student's top k summed exactly, other tokens sampled; `b` = mean of `r` outside the top k",
    colour="#66c2a5",
)


def _rao_blackwell_teacher_top_k(rows: Rows) -> Estimate:
    """b = r_bucket = log(q(bucket) / p(bucket)), the bucket being the tokens outside S."""
    rewards, bucket_reward = bucket_rewards(rows)
    return rao_blackwell(rows, rewards, not_none(rows.rewards), bucket_reward).with_baseline(bucket_reward)


RAO_BLACKWELL_TEACHER_TOP_K = Estimator(
    name="rao_blackwell_teacher_top_k",
    description="the teacher's top k summed exactly, all other tokens sampled; works with a server",
    support="top_k",
    needs=Needs(support="teacher_top_k"),
    estimate=_rao_blackwell_teacher_top_k,
    formula="`S` summed exactly, other tokens sampled; `b = r_bucket`",
    colour="#009e73",
)

"""What an estimator is, and the two gradient forms that all of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, cat

from vopd.functional import policy_gradient_loss
from vopd.functional.moments import not_none
from vopd.kernels import Estimate, GradientForm, Needs, Rows


@dataclass(frozen=True)
class Estimator:
    """A named way to turn both models' scores of a sampled token into a gradient.

    Attributes:
        name: how users call it.
        description: one line for tables and help texts.
        support: what it needs of the teacher: the ``sampled`` token's score, scores of a ``top_k``, or ``full`` rows.
        unbiased: whether its expected gradient is that of the exact reverse KL.
        needs_top_k: whether ``top_k`` must be given.
        teacher_scores: whether a plain server's scores (``TopKScores``) are enough.
        needs: the statistics it reads from the kernels.
        estimate: statistics of N rows -> token losses and gradient form.
    """

    name: str
    description: str
    support: Literal["sampled", "top_k", "full"]
    unbiased: bool
    needs: Needs
    estimate: Callable[[Rows], Estimate]
    needs_top_k: bool = False
    teacher_scores: bool = False


def policy_gradient(rows: Rows, advantages: Tensor, baseline: Tensor | None) -> Estimate:
    """Token loss -w A log p_y, whose gradient in the logits is w A (p - e_y): a = w A, and -w A at y.

    Args:
        rows: statistics.
        advantages: A = r_y - b, (N,).
        baseline: b for reporting, (N,), None where only A is known.
    """
    weighted = advantages * rows.importance
    form = GradientForm(a=weighted, ids=rows.sampled_ids.unsqueeze(-1), values=-weighted.unsqueeze(-1))
    loss = policy_gradient_loss(rows.student_logprobs, advantages, rows.importance)
    return Estimate(loss=loss, form=form, baseline=baseline, advantages=advantages)


def centred_policy_gradient(rows: Rows, centred_baseline: Tensor) -> Estimate:
    """The same from b' = b - r_top: A = r'_y - b' = -d'_y - b', in which both log-normalisers cancel."""
    advantages = -not_none(rows.sampled_difference) - centred_baseline
    baseline = None if rows.top_reward is None else rows.top_reward + centred_baseline
    return policy_gradient(rows, advantages, baseline)


def rao_blackwell(rows: Rows, support_rewards: Tensor, sampled_rewards: Tensor, baseline: Tensor) -> Estimate:
    """Sums the support exactly and samples the rest (``functional.rao_blackwell_loss``).

    With c_v = p_v (r_v - b) on S and c_y = w (r_y - b) if y is not in S, the gradient in the logits is
    (sum c) p - c at S and y.

    Args:
        rows: statistics; ``rows.in_support`` is S.
        support_rewards: r at the columns, (N, K), up to a constant per row.
        sampled_rewards: r_y on the same scale, (N,).
        baseline: b on the same scale, (N,), state-only.
    """
    summed = rows.support_logprobs.exp() * (support_rewards - baseline.unsqueeze(-1))
    summed = summed.masked_fill(~rows.in_support, 0)
    sampled_in_support = ((rows.support_ids == rows.sampled_ids.unsqueeze(-1)) & rows.in_support).any(-1)
    advantages = sampled_rewards - baseline
    sampled = (advantages * rows.importance).masked_fill(sampled_in_support, 0)
    form = GradientForm(
        a=summed.sum(-1) + sampled,
        ids=_append(rows.support_ids, rows.sampled_ids),
        values=-_append(summed, sampled),
    )
    # 0 log 0 = 0 for a token that the student excludes.
    entropies = (summed * rows.support_logprobs).masked_fill(summed == 0, 0)
    loss = policy_gradient_loss(rows.student_logprobs, sampled) - entropies.sum(-1)
    return Estimate(loss=loss, form=form, advantages=advantages)


def with_extra_advantages(rows: Rows, estimate: Estimate) -> Estimate:
    """Adds the plain policy-gradient term -w e log p_y of the caller's advantages e: w e more in a, -w e more at y.

    Where the estimator samples, that is A = r_y - b + e. Where it sums tokens exactly (Rao-Blackwell's support, the
    exact objectives) there is no sampled term to add to: e is known of the sampled token alone, so it stays sampled.
    ``advantages`` stays r_y - b, so that the two parts are told apart.
    """
    if rows.extra_advantages is None:
        return estimate
    weighted = rows.extra_advantages.to(rows.importance) * rows.importance
    form = replace(
        estimate.form,
        a=estimate.form.a + weighted,
        ids=_append(estimate.form.ids, rows.sampled_ids),
        values=_append(estimate.form.values, -weighted),
    )
    return replace(estimate, loss=estimate.loss + policy_gradient_loss(rows.student_logprobs, weighted), form=form)


def _append(columns: Tensor, column: Tensor) -> Tensor:
    return cat([columns, column.unsqueeze(-1)], dim=-1)

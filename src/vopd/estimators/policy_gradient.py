"""Policy-gradient estimators: log p(y) of the sampled token, weighted by its reward minus a baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vopd.functional import (
    centred_optimal_baseline,
    centred_value_baseline,
    optimal_baseline,
    policy_gradient_loss,
    renormalised_top_k_baseline,
    sparse_top_k_baseline,
    value_baseline,
)
from vopd.functional.moments import not_none
from vopd.kernels import Estimate, GradientForm, Needs, Rows

from .base import Estimator
from .supports import bucket_moments, support_logits

if TYPE_CHECKING:
    from jaxtyping import Float


def policy_gradient(rows: Rows, advantages: Float[Tensor, " N"], baseline: Float[Tensor, " N"] | None) -> Estimate:
    """Policy-gradient estimate from advantages: token loss -w A log p_y.

    Its gradient with respect to the logits is w A (p - e_y): a = w A, and -w A at y.

    Args:
        rows: statistics of N tokens.
        advantages: A = r_y - b, (N,), nats.
        baseline: b, (N,), for reports only; None if only A is known.

    Returns:
        Loss and gradient form of the N tokens.
    """
    weighted = advantages * rows.importance
    form = GradientForm(a=weighted, ids=rows.sampled_ids.unsqueeze(-1), values=-weighted.unsqueeze(-1))
    loss = policy_gradient_loss(rows.student_logprobs, advantages, rows.importance)
    return Estimate(loss=loss, form=form, baseline=baseline, advantages=advantages)


def centred_policy_gradient(rows: Rows, centred_baseline: Float[Tensor, " N"]) -> Estimate:
    """``policy_gradient`` from a centred baseline b' = b - r_top.

    The advantage A = r'_y - b' = -d'_y - b' does not depend on the log-normalizer of either model.

    Args:
        rows: statistics of N tokens.
        centred_baseline: b', (N,), nats.

    Returns:
        Loss and gradient form of the N tokens.
    """
    advantages = -not_none(rows.sampled_difference) - centred_baseline
    baseline = None if rows.top_reward is None else rows.top_reward + centred_baseline
    return policy_gradient(rows, advantages, baseline)


def _opd(rows: Rows) -> Estimate:
    """A = r_y."""
    rewards = not_none(rows.rewards)
    return policy_gradient(rows, rewards, torch.zeros_like(rewards))


OPD = Estimator(
    name="opd",
    description="vanilla OPD: log-ratio of the sampled token, no baseline",
    support="sampled",
    needs=Needs(),
    estimate=_opd,
    formula="`b = 0` (vanilla)",
    colour="#4d4d4d",
)


def _vopd(rows: Rows) -> Estimate:
    """A = r_y - V = E_p[d] - d_y. Source: arXiv 2605.07865, Eq. 9."""
    return centred_policy_gradient(rows, centred_value_baseline(rows.moments()))


VOPD = Estimator(
    name="vopd",
    description="value baseline -KL(p || q) over the full vocabulary (the paper)",
    support="full",
    needs=Needs(order=1),
    estimate=_vopd,
    formula="`b = V` (the paper's Eq. 9)",
    colour="#0072b2",
)


def _vopd_top_k(rows: Rows) -> Estimate:
    """A = r_y + KL(p~ || q~). Source: arXiv 2605.07865, Eqs. 14-15."""
    baseline = renormalised_top_k_baseline(*support_logits(rows))
    return policy_gradient(rows, not_none(rows.rewards) - baseline, baseline)


VOPD_TOP_K = Estimator(
    name="vopd_top_k",
    description="value baseline with both models renormalized on the student's top k (the paper)",
    support="top_k",
    needs=Needs(support="student_top_k"),
    estimate=_vopd_top_k,
    formula="`b = -KL(p~ || q~)` (the paper's Eqs. 14-15)",
    colour="#56b4e9",
)


def _vopd_sparse(rows: Rows) -> Estimate:
    """A = E_p~[d] - d_y, with p~ the student renormalized on its top k."""
    student, _ = support_logits(rows)
    return centred_policy_gradient(rows, sparse_top_k_baseline(student, -not_none(rows.support_difference)))


VOPD_SPARSE = Estimator(
    name="vopd_sparse",
    description="mean reward on the student's renormalized top k; needs the teacher at k + 1 ids only",
    support="top_k",
    needs=Needs(support="student_top_k", full_teacher=False),
    estimate=_vopd_sparse,
    formula="`b = E_p~[r]`",
    colour="#7fa7c9",
)


def _vopd_optimal(rows: Rows) -> Estimate:
    """A = r_y - E_p[w r] / E_p[w]. Its advantages do not have mean 0: never whiten or clip them."""
    return centred_policy_gradient(rows, centred_optimal_baseline(rows.moments()))


VOPD_OPTIMAL = Estimator(
    name="vopd_optimal",
    description="baseline with the least variance, E_p[w r] / E_p[w] with w = |e_v - p|^2",
    support="full",
    needs=Needs(order=2),
    estimate=_vopd_optimal,
    formula="`b = E_p[w r] / E_p[w]`, the least variance in logit space",
    colour="#d55e00",
)


def _vopd_teacher_top_k(rows: Rows) -> Estimate:
    """A = r_y - (sum_S p r + p(bucket) r_bucket), S the teacher's top k."""
    baseline = value_baseline(bucket_moments(rows))
    return policy_gradient(rows, not_none(rows.rewards) - baseline, baseline)


VOPD_TEACHER_TOP_K = Estimator(
    name="vopd_teacher_top_k",
    description="value baseline from the teacher's top k and one bucket for all other tokens; works with a server",
    support="top_k",
    needs=Needs(support="teacher_top_k"),
    estimate=_vopd_teacher_top_k,
    formula="`b = sum_S[p r] + p_bucket r_bucket`",
    colour="#8c6bb1",
)


def _vopd_teacher_top_k_optimal(rows: Rows) -> Estimate:
    """A = r_y - [sum_S p w r + (sum_{v not in S} p w) r_bucket] / E_p[w], S the teacher's top k."""
    baseline = optimal_baseline(bucket_moments(rows))
    return policy_gradient(rows, not_none(rows.rewards) - baseline, baseline)


VOPD_TEACHER_TOP_K_OPTIMAL = Estimator(
    name="vopd_teacher_top_k_optimal",
    description="optimal baseline from the teacher's top k and one bucket for all other tokens; works with a server",
    support="top_k",
    needs=Needs(support="teacher_top_k", order=2),
    estimate=_vopd_teacher_top_k_optimal,
    formula="the same sums weighted by `w`, divided by `E_p[w]`",
    colour="#6a3d9a",
)

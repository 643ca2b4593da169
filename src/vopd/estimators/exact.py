"""Exact objectives: sums over tokens, with no dependence on the sampled token."""

from __future__ import annotations

import torch

from vopd.functional import centred_value_baseline, sparse_top_k_baseline, truncated_reverse_kl, value_baseline
from vopd.functional.moments import not_none
from vopd.kernels import Estimate, GradientForm, Needs, Rows

from .base import Estimator
from .supports import support_logits


def _full_rkl(rows: Rows) -> Estimate:
    """Token loss KL(p || q); gradient p (d' - E_p[d']): b = 1, a = -E_p[d'] = E_p[r']."""
    moments = rows.moments()
    centred = centred_value_baseline(moments)
    form = GradientForm(
        a=centred,
        b=torch.ones_like(centred),
        ids=rows.sampled_ids.unsqueeze(-1),
        values=torch.zeros_like(centred).unsqueeze(-1),
    )
    return Estimate(loss=-value_baseline(moments), form=form)


FULL_RKL = Estimator(
    name="full_rkl",
    description="exact reverse KL over the full vocabulary, no sampling noise in the token",
    support="full",
    needs=Needs(order=1),
    estimate=_full_rkl,
    formula="loss `KL(p || q)`, differentiated over the whole vocabulary",
    samples=False,
    colour="#cc79a7",
)


def _top_k_rkl(rows: Rows) -> Estimate:
    """Token loss KL(p~ || q~); gradient p~ (d' - E_p~[d']) at the k ids, 0 elsewhere."""
    student, teacher = support_logits(rows)
    difference = not_none(rows.support_difference)
    mean = sparse_top_k_baseline(student, difference)
    values = torch.softmax(student, dim=-1) * (difference - mean.unsqueeze(-1))
    form = GradientForm(a=torch.zeros_like(mean), ids=rows.support_ids, values=values)
    return Estimate(loss=truncated_reverse_kl(student, teacher), form=form)


TOP_K_RKL = Estimator(
    name="top_k_rkl",
    description="reverse KL renormalized on the student's top k: a biased control (the paper)",
    support="top_k",
    unbiased=False,
    needs=Needs(support="student_top_k", full_teacher=False),
    estimate=_top_k_rkl,
    formula="loss `KL(p~ || q~)`, differentiated: a biased control",
    samples=False,
    colour="#b8860b",
)

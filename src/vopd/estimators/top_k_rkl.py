"""The biased control: KL(p~ || q~) on the student's top k, backpropagated."""

from __future__ import annotations

import torch

from vopd.functional import sparse_top_k_baseline, truncated_reverse_kl
from vopd.functional.moments import not_none
from vopd.kernels import Estimate, GradientForm, Needs, Rows

from .base import Estimator
from .student_top_k import support_logits


def estimate(rows: Rows) -> Estimate:
    """Token loss KL(p~ || q~); gradient p~ (d' - E_p~[d']) at the k ids, nothing elsewhere."""
    student, teacher = support_logits(rows)
    difference = not_none(rows.support_difference)
    mean = sparse_top_k_baseline(student, difference)
    values = torch.softmax(student, dim=-1) * (difference - mean.unsqueeze(-1))
    form = GradientForm(a=torch.zeros_like(mean), ids=rows.support_ids, values=values)
    return Estimate(loss=truncated_reverse_kl(student, teacher), form=form)


TOP_K_RKL = Estimator(
    name="top_k_rkl",
    description="reverse KL renormalised on the student's top k: a biased control (the paper)",
    support="top_k",
    unbiased=False,
    needs=Needs(support="student_top_k", full_teacher=False),
    estimate=estimate,
    needs_top_k=True,
)

"""Rows of logits that are no distribution: the loss is NaN, by either backend, and no token is read beyond the row."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

import vopd
from enumeration import top_k
from head_reference import batch_of, leaves

INTERPRETED = importlib.util.find_spec("triton") is not None and os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ["torch", *["triton"] * INTERPRETED]
SPOILT = {
    "student": ("student_hidden",),
    "teacher": ("teacher_hidden",),
    "both": ("student_hidden", "teacher_hidden"),
    "student's column": ("student_head",),
    "student's infinity": ("student_bias",),
}

pytestmark = pytest.mark.filterwarnings("ignore:.*(invalid value|All-NaN slice) encountered:RuntimeWarning")


def spoilt_batch(names):
    """One row of the hidden states or of the head is NaN, the bias of one token, which is not sampled, infinite."""
    batch = batch_of({"student_bias": True}, shape=(6,))
    batch["completion_mask"] = torch.ones_like(batch["completion_mask"])
    with torch.no_grad():
        for name in names:
            batch[name][3] = torch.inf if name.endswith("bias") else torch.nan
    assert 3 not in batch["completion_ids"]
    return batch


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("estimator", list(vopd.ESTIMATORS))
@pytest.mark.parametrize("names", SPOILT.values(), ids=list(SPOILT))
def test_what_is_no_number_makes_the_loss_none_and_its_gradient(names, estimator, backend):
    batch = spoilt_batch(names)
    out = vopd.linear_distillation_loss(**batch, estimator=estimator, top_k=top_k(estimator, 4), backend=backend)
    assert out.loss.isnan()
    assert all(gradient.isnan().any() for gradient in torch.autograd.grad(out.loss, leaves(batch)))
    if "hidden" in names[0]:
        assert out.student_logprobs.isfinite().tolist() == [i != 3 or "student_hidden" not in names for i in range(6)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("estimator", list(vopd.ESTIMATORS))
def test_a_row_without_any_logit_is_not_finite(estimator, backend):
    batch = spoilt_batch([])
    with torch.no_grad():
        batch["student_bias"].fill_(-torch.inf)
    out = vopd.linear_distillation_loss(**batch, estimator=estimator, top_k=top_k(estimator, 4), backend=backend)
    assert not out.loss.isfinite()
    assert not any(gradient.isfinite().all() for gradient in torch.autograd.grad(out.loss, leaves(batch)))


@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
def test_nothing_outside_a_support_leaves_what_is_inside():
    """The kernel then finds no token, and the sums about its minus infinity must not become NaN."""
    batch = batch_of({}, vocab=4, extra=(0, 0), shape=(4,))
    ours, theirs = (
        vopd.linear_distillation_loss(
            **batch, estimator="vopd_teacher_top_k", top_k=4, diagnostics=True, backend=backend
        )
        for backend in ("triton", "torch")
    )
    for name in ("loss", "entropy", "reverse_kl"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))

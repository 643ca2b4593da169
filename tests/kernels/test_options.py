"""Biases, logit scales and soft caps against dense logits by autograd, and what is said when they do not fit."""

from __future__ import annotations

import pytest
import torch

import vopd
from enumeration import top_k
from head_reference import OPTIONS, assert_same_outputs, batch_of, dense, leaves, relative_error, wide
from vopd.errors import ConfigurationError

EVERY = list(vopd.ESTIMATORS)


@pytest.mark.parametrize("estimator", EVERY)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_value_and_gradient_are_those_of_dense_logits(estimator, options):
    batch = batch_of(options)
    arguments = {"estimator": estimator, "top_k": top_k(estimator, 4)}
    ours = vopd.linear_distillation_loss(**batch, **arguments, diagnostics=True, chunk_size=4)
    theirs = dense(batch, **arguments, diagnostics=True)
    assert_same_outputs(ours, theirs)
    for left, right in zip(
        torch.autograd.grad(ours.loss, leaves(batch)), torch.autograd.grad(theirs.loss, leaves(batch))
    ):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("estimator", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_inputs_with_every_option(estimator, dtype):
    batch = batch_of(OPTIONS["everything"], dtype=dtype)
    exact = wide(batch)
    arguments = {"estimator": estimator, "top_k": top_k(estimator, 4)}
    ours, theirs = vopd.linear_distillation_loss(**batch, **arguments), dense(exact, **arguments)
    assert_same_outputs(ours, theirs, rtol=1e-4, atol=1e-4)
    limit = 1e-5 if dtype == torch.float32 else 1e-2
    for left, right, leaf in zip(
        torch.autograd.grad(ours.loss, leaves(batch)), torch.autograd.grad(theirs.loss, leaves(exact)), leaves(batch)
    ):
        assert left.dtype == leaf.dtype
        assert relative_error(left, right) < limit


@pytest.mark.parametrize("frozen", ["student_hidden", "student_head", "student_bias"])
def test_what_is_frozen_gets_no_gradient_and_changes_the_others_not(frozen):
    batch = batch_of(OPTIONS["everything"])
    kept = [name for name in ("student_hidden", "student_head", "student_bias") if name != frozen]
    expected = torch.autograd.grad(vopd.linear_distillation_loss(**batch).loss, [batch[name] for name in kept])
    batch[frozen] = batch[frozen].detach()
    out = vopd.linear_distillation_loss(**batch)
    for left, right in zip(torch.autograd.grad(out.loss, [batch[name] for name in kept]), expected):
        torch.testing.assert_close(left, right)


def test_rows_beyond_the_vocabulary_get_no_gradient():
    batch = batch_of(OPTIONS["everything"])
    vopd.linear_distillation_loss(**batch).loss.backward()
    for name in ("student_head", "student_bias"):
        assert batch[name].grad[:50].abs().sum() > 0
        assert batch[name].grad[50:].abs().max() == 0


def test_a_saturated_soft_cap_passes_next_to_no_gradient():
    batch = batch_of({"student_softcap": 1.0, "student_logit_scale": 100.0})
    vopd.linear_distillation_loss(**batch).loss.backward()
    free = batch_of({"student_softcap": 1e4, "student_logit_scale": 1.0})
    vopd.linear_distillation_loss(**free).loss.backward()
    assert batch["student_head"].grad.norm() < free["student_head"].grad.norm()
    assert torch.isfinite(batch["student_head"].grad).all()


def test_logits_further_apart_than_float32_can_exponentiate():
    batch = batch_of({"student_softcap": 150.0, "student_logit_scale": 60.0, "temperature": 0.5}, dtype=torch.float32)
    exact = wide(batch)
    ours, theirs = (
        torch.autograd.grad(loss, leaves(b))
        for loss, b in ((vopd.linear_distillation_loss(**batch).loss, batch), (dense(exact).loss, exact))
    )
    for left, right in zip(ours, theirs):
        assert relative_error(left, right) < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student_bias": torch.zeros(50)}, r"student_bias has shape \(50,\), expected \(56,\)"),
        ({"teacher_bias": torch.zeros(52, 1)}, r"teacher_bias has shape \(52, 1\), expected \(52,\)"),
        ({"student_softcap": 0.0}, "student_softcap must be above 0"),
        ({"teacher_softcap": -30.0}, "teacher_softcap must be above 0"),
        ({"student_logit_scale": 0.0}, "student_logit_scale must be above 0"),
        ({"teacher_logit_scale": float("nan")}, "teacher_logit_scale must be above 0"),
    ],
)
def test_options_that_do_not_fit_are_answered_with_the_fix(change, message):
    with pytest.raises(ConfigurationError, match=message):
        vopd.linear_distillation_loss(**{**batch_of({}), **change})

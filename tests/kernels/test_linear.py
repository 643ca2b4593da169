"""The fused pass against dense logits by autograd: shapes, dtypes, options, memory."""

from __future__ import annotations

import itertools

import pytest
import torch

import vopd
from enumeration import top_k
from vopd.functional import moments as dense_moments
from vopd.functional import (
    optimal_baseline,
    policy_gradient_loss,
    rao_blackwell_loss,
    reverse_kl,
    truncated_reverse_kl,
    value_baseline,
)

EVERY = list(vopd.ESTIMATORS)


def inputs(vocab=50, extra=(6, 2), widths=(8, 12), shape=(3, 5), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "student_hidden": normal(*shape, widths[0]).requires_grad_(),
        "student_head": normal(vocab + extra[0], widths[0]).requires_grad_(),
        "teacher_hidden": normal(*shape, widths[1]),
        "teacher_head": 0.7 * normal(vocab + extra[1], widths[1]),
        "completion_ids": torch.randint(vocab, shape, generator=generator),
        "completion_mask": (torch.rand(shape, generator=generator) > 0.3).long(),
    }


def reference(batch, estimator, vocab, temperature=1.0):
    """The loss written out on dense logits with the functions of vopd.functional, by autograd."""
    student = (batch["student_hidden"] @ batch["student_head"].T)[..., :vocab] / temperature
    teacher = (batch["teacher_hidden"] @ batch["teacher_head"].T)[..., :vocab] / temperature
    student, teacher = student.to(torch.float64), teacher.to(torch.float64)
    logprobs, teacher_logprobs = student.log_softmax(-1), teacher.log_softmax(-1)
    ids, mask = batch["completion_ids"], batch["completion_mask"]
    rewards = (teacher_logprobs - logprobs).detach()
    sampled = ids.unsqueeze(-1)
    stated = dense_moments(student.detach(), teacher)
    ordered = student.topk(4, -1).indices
    if estimator == "full_rkl":
        token_loss = reverse_kl(logprobs, teacher_logprobs)
    elif estimator == "top_k_rkl":
        token_loss = truncated_reverse_kl(student.gather(-1, ordered), teacher.gather(-1, ordered))
    elif estimator == "rao_blackwell_top_k":
        outside = torch.ones_like(rewards).scatter(-1, ordered, 0) * logprobs.detach().exp()
        baseline = (outside * rewards).sum(-1) / outside.sum(-1)
        token_loss = rao_blackwell_loss(logprobs, rewards, baseline, ids, ordered)
    else:
        baselines = {"opd": 0.0, "vopd": value_baseline(stated), "vopd_optimal": optimal_baseline(stated)}
        advantages = rewards.gather(-1, sampled).squeeze(-1) - baselines[estimator]
        token_loss = policy_gradient_loss(logprobs.gather(-1, sampled).squeeze(-1), advantages)
    return (token_loss * mask).sum() / mask.sum()


@pytest.mark.parametrize("estimator", ["opd", "vopd", "vopd_optimal", "rao_blackwell_top_k", "full_rkl", "top_k_rkl"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_value_and_gradient_are_those_of_the_written_out_loss(estimator, temperature):
    batch = inputs()
    leaves = [batch["student_hidden"], batch["student_head"]]
    expected = reference(batch, estimator, 50, temperature)
    out = vopd.linear_distillation_loss(
        **batch, estimator=estimator, top_k=top_k(estimator, 4), vocab_size=50, temperature=temperature
    )
    torch.testing.assert_close(out.loss, expected)
    for ours, theirs in zip(torch.autograd.grad(out.loss, leaves), torch.autograd.grad(expected, leaves)):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("estimator", EVERY)
def test_heads_and_logits_agree_and_rows_beyond_the_vocabulary_get_nothing(estimator):
    batch = inputs()
    leaves = [batch["student_hidden"], batch["student_head"]]
    options = {"estimator": estimator, "top_k": top_k(estimator, 4), "vocab_size": 50}
    linear = vopd.linear_distillation_loss(**batch, **options)
    dense = vopd.distillation_loss(
        batch["student_hidden"] @ batch["student_head"].T,
        batch["teacher_hidden"] @ batch["teacher_head"].T,
        batch["completion_ids"],
        batch["completion_mask"],
        **options,
    )
    torch.testing.assert_close(linear.loss, dense.loss)
    gradients = torch.autograd.grad(linear.loss, leaves)
    for ours, theirs in zip(gradients, torch.autograd.grad(dense.loss, leaves)):
        torch.testing.assert_close(ours, theirs)
    assert gradients[1][:50].abs().sum() > 0
    assert gradients[1][50:].abs().max() == 0
    for name in ("advantages", "baseline", "rewards", "reverse_kl", "student_logprobs", "teacher_logprobs"):
        ours = getattr(linear, name)
        if ours is not None:
            torch.testing.assert_close(ours, getattr(dense, name))
            assert ours.shape == batch["completion_ids"].shape
            assert not ours.requires_grad
            assert ours[batch["completion_mask"] == 0].abs().max() == 0


@pytest.mark.parametrize("estimator", EVERY)
@pytest.mark.parametrize("chunk_size", [1, 2, 7, 100])
def test_chunk_size_changes_nothing(estimator, chunk_size):
    batch = inputs()
    leaves = [batch["student_hidden"], batch["student_head"]]
    options = {"estimator": estimator, "top_k": top_k(estimator, 4), "diagnostics": True}
    whole = vopd.linear_distillation_loss(**batch, **options)
    parts = vopd.linear_distillation_loss(**batch, **options, chunk_size=chunk_size)
    torch.testing.assert_close(parts.loss, whole.loss)
    for ours, theirs in zip(torch.autograd.grad(parts.loss, leaves), torch.autograd.grad(whole.loss, leaves)):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("estimator", EVERY)
def test_padding_rows_and_flat_shapes_change_nothing(estimator):
    batch = inputs()
    flat = {k: v.flatten(0, 1) if v.ndim == 3 or v.shape == (3, 5) else v for k, v in batch.items()}
    kept = flat["completion_mask"].bool()
    packed = {k: v if k.endswith("head") else v[kept] for k, v in flat.items()}
    options = {"estimator": estimator, "top_k": top_k(estimator, 4)}
    losses = [vopd.linear_distillation_loss(**b, **options) for b in (batch, flat, packed)]
    garbage = dict(batch)
    nan = torch.where(batch["completion_mask"].unsqueeze(-1) == 0, torch.nan, 1)
    garbage |= {"student_hidden": batch["student_hidden"] * nan, "teacher_hidden": batch["teacher_hidden"] * nan}
    garbage["completion_ids"] = torch.where(batch["completion_mask"] == 0, -100, batch["completion_ids"])
    losses.append(vopd.linear_distillation_loss(**garbage, **options))
    gradients = [torch.autograd.grad(out.loss, batch["student_head"])[0] for out in losses]
    for out, gradient in zip(losses[1:], gradients[1:]):
        torch.testing.assert_close(out.loss, losses[0].loss)
        torch.testing.assert_close(gradient, gradients[0])


@pytest.mark.parametrize("estimator", EVERY)
@pytest.mark.parametrize("frozen", ["student_head", "student_hidden"])
def test_a_frozen_input_gets_no_gradient_and_changes_the_other_ones_not(estimator, frozen):
    batch = inputs()
    trained = "student_hidden" if frozen == "student_head" else "student_head"
    options = {"estimator": estimator, "top_k": top_k(estimator, 4)}
    both = vopd.linear_distillation_loss(**batch, **options).loss
    expected = torch.autograd.grad(both, batch[trained])[0]
    out = vopd.linear_distillation_loss(**{**batch, frozen: batch[frozen].detach()}, **options)
    torch.testing.assert_close(torch.autograd.grad(out.loss, batch[trained])[0], expected)


def test_no_gradient_is_formed_without_grad_mode():
    batch = inputs()
    with torch.no_grad():
        out = vopd.linear_distillation_loss(**batch)
    assert not out.loss.requires_grad
    torch.testing.assert_close(out.loss, vopd.linear_distillation_loss(**batch).loss.detach())


def test_backpropagating_twice_is_a_clear_error():
    out = vopd.linear_distillation_loss(**inputs())
    out.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="already backpropagated"):
        out.loss.backward()


def test_the_gradient_of_the_loss_scales_it():
    batch = inputs()
    plain = torch.autograd.grad(vopd.linear_distillation_loss(**batch).loss, batch["student_head"])[0]
    scaled = torch.autograd.grad(3 * vopd.linear_distillation_loss(**batch).loss, batch["student_head"])[0]
    torch.testing.assert_close(scaled, 3 * plain)


@pytest.mark.parametrize("estimator", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_inputs_are_computed_in_float32(estimator, dtype):
    batch = inputs(dtype=dtype)
    wide = {k: v.detach().double() if v.is_floating_point() else v for k, v in batch.items()}
    wide |= {name: wide[name].requires_grad_() for name in ("student_hidden", "student_head")}
    options = {"estimator": estimator, "top_k": top_k(estimator, 4)}
    out, exact = (vopd.linear_distillation_loss(**b, **options) for b in (batch, wide))
    assert out.student_logprobs.dtype == torch.float32
    torch.testing.assert_close(out.loss.double(), exact.loss, rtol=1e-5, atol=1e-5)
    if out.advantages is not None:
        torch.testing.assert_close(out.advantages.double(), exact.advantages, rtol=0, atol=1e-4)
    limit = 1e-5 if dtype == torch.float32 else 1e-2
    ours = torch.autograd.grad(out.loss, [batch["student_hidden"], batch["student_head"]])
    theirs = torch.autograd.grad(exact.loss, [wide["student_hidden"], wide["student_head"]])
    for left, right in zip(ours, theirs):
        assert left.dtype == dtype
        assert (left.double() - right).norm() <= limit * right.norm()


@pytest.mark.parametrize("estimator", EVERY)
def test_an_empty_mask_gives_zero_loss_and_zero_gradients(estimator):
    batch = inputs()
    batch["completion_mask"] = torch.zeros_like(batch["completion_mask"])
    for normalizer in (None, 7, torch.tensor(0)):
        out = vopd.linear_distillation_loss(
            **batch, estimator=estimator, top_k=top_k(estimator, 4), normalizer=normalizer, diagnostics=True
        )
        assert out.loss == 0
        for gradient in torch.autograd.grad(out.loss, [batch["student_hidden"], batch["student_head"]]):
            assert gradient.abs().max() == 0


@pytest.mark.parametrize("estimator", EVERY)
def test_the_normalizer_divides_the_sum(estimator):
    batch = inputs()
    options = {"estimator": estimator, "top_k": top_k(estimator, 4)}
    mean = vopd.linear_distillation_loss(**batch, **options).loss
    count = batch["completion_mask"].sum()
    for normalizer in (10, torch.tensor(10)):
        other = vopd.linear_distillation_loss(**batch, **options, normalizer=normalizer).loss
        torch.testing.assert_close(other, mean * count / 10)


@pytest.mark.parametrize(("k", "vocab"), list(itertools.product([1, 4], [5, 16, 33])))
def test_odd_vocabularies(k, vocab):
    batch = inputs(vocab=vocab, extra=(0, 0))
    for estimator in ("vopd_top_k", "rao_blackwell_top_k", "rao_blackwell_teacher_top_k"):
        linear = vopd.linear_distillation_loss(**batch, estimator=estimator, top_k=k)
        dense = vopd.distillation_loss(
            batch["student_hidden"] @ batch["student_head"].T,
            batch["teacher_hidden"] @ batch["teacher_head"].T,
            batch["completion_ids"],
            batch["completion_mask"],
            estimator=estimator,
            top_k=k,
        )
        torch.testing.assert_close(linear.loss, dense.loss)


def test_the_sparse_estimator_reads_only_the_rows_of_the_teacher_that_it_needs():
    """The rest of the teacher's head may be NaN: it is never multiplied."""
    batch = inputs()
    student = (batch["student_hidden"] @ batch["student_head"].T)[..., :50].detach()
    needed = torch.cat([student.topk(4, -1).indices.flatten(), batch["completion_ids"].flatten()]).unique()
    assert len(needed) < 50
    head = torch.full_like(batch["teacher_head"], torch.nan)
    head[needed] = batch["teacher_head"][needed]
    options = {"estimator": "vopd_sparse", "top_k": 4, "vocab_size": 50}
    out = vopd.linear_distillation_loss(**{**batch, "teacher_head": head}, **options)
    torch.testing.assert_close(out.loss, vopd.linear_distillation_loss(**batch, **options).loss)
    assert out.rewards is None and out.baseline is None and out.teacher_logprobs is None


@pytest.mark.parametrize("estimator", [name for name in EVERY if vopd.ESTIMATORS[name].teacher_scores])
def test_the_id_of_an_absent_entry_of_a_server_means_nothing(estimator):
    """Neither one of the support nor one outside it, whose mass must not be lost."""
    student, teacher = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logprobs, ids, gradients = teacher.log_softmax(-1), teacher.topk(4).indices, []
    for other in (ids[:, :1], student.argmax(-1, keepdim=True), teacher.argmin(-1, keepdim=True)):
        shown = torch.cat([ids[:, :3], other], -1)
        values = logprobs.gather(-1, shown)
        values[:, 3] = -torch.inf
        logits = student.clone().requires_grad_()
        scores = vopd.TopKScores(logprobs[:, 0], shown, values)
        loss = vopd.distillation_loss(
            logits, None, torch.zeros(6, dtype=torch.long), estimator=estimator, teacher_scores=scores
        ).loss
        gradients.append(torch.autograd.grad(loss, logits)[0])
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0])

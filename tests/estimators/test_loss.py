"""What users of the loss functions meet: extremes, importance weights, outputs, errors."""

from __future__ import annotations

import pytest
import torch

import vopd
from enumeration import top_k
from vopd.errors import ConfigurationError
from vopd.estimators import loss as losses
from vopd.kernels import Batch

EVERY = list(vopd.ESTIMATORS)


def logits(vocab=12, rows=6, seed=0, dtype=torch.float32):
    student, teacher = torch.randn(2, rows, vocab, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return student.requires_grad_(), teacher, torch.arange(rows) % vocab


def loss_and_gradient(student, teacher, ids, estimator, **options):
    out = vopd.distillation_loss(student, teacher, ids, estimator=estimator, top_k=top_k(estimator), **options)
    return out, torch.autograd.grad(out.loss, student)[0]


@pytest.mark.parametrize("estimator", EVERY)
@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_large_logits_stay_finite_and_right(estimator, offset):
    student, teacher, ids = logits(dtype=torch.float64)
    _, exact = loss_and_gradient(student, teacher, ids, estimator)
    shifted = (student.detach() + offset).float().requires_grad_()
    out, gradient = loss_and_gradient(shifted, (teacher - offset).float(), ids, estimator)
    assert torch.isfinite(out.loss)
    torch.testing.assert_close(gradient.double(), exact, atol=2e-3, rtol=0)  # an ulp of 1e4 is 1e-3


@pytest.mark.parametrize("estimator", EVERY)
def test_extreme_rows_give_finite_gradients(estimator):
    rows = torch.tensor([[1e4, -1e4, 0.0, 0.0], [0.0, 1e4, 1e4, -1e4], [-1e4, 0.0, 0.0, 0.0]])
    student = rows.clone().requires_grad_()
    out, gradient = loss_and_gradient(student, rows.roll(1, 0), torch.tensor([0, 1, 2]), estimator)
    assert torch.isfinite(out.loss)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("estimator", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_identical_models_have_nothing_to_learn(estimator, dtype):
    student, _, ids = logits(vocab=40)
    student = (3 * student.detach()).to(dtype).requires_grad_()
    out, gradient = loss_and_gradient(student, student.detach(), ids, estimator)
    # 1 - sum over the teacher's top k, all that a server allows, rounds at 1e-7 of a small rest.
    limit = 2e-5 if vopd.ESTIMATORS[estimator].needs.support == "teacher_top_k" else 1e-6
    assert abs(float(out.loss.detach())) < limit
    assert gradient.abs().max() < limit
    if out.advantages is not None:
        assert out.advantages.abs().max() < limit


@pytest.mark.parametrize("estimator", EVERY)
def test_a_token_excluded_from_both_vocabularies_counts_for_nothing(estimator):
    student, teacher, ids = logits(vocab=12)
    _, expected = loss_and_gradient(student, teacher, ids, estimator)
    excluded = torch.full((6, 1), -torch.inf)
    wide = torch.cat([student.detach(), excluded], -1).requires_grad_()
    out, gradient = loss_and_gradient(wide, torch.cat([teacher, excluded], -1), ids, estimator)
    assert torch.isfinite(out.loss)
    torch.testing.assert_close(gradient[:, :12], expected)
    assert gradient[:, 12].abs().max() == 0


@pytest.mark.parametrize("estimator", ["vopd", "vopd_optimal", "full_rkl"])
def test_a_teacher_that_excludes_what_the_student_allows_is_not_silently_finite(estimator):
    student, teacher, ids = logits()
    teacher[:, 5] = -torch.inf
    out, _ = loss_and_gradient(student, teacher, ids, estimator)
    assert not torch.isfinite(out.loss)


SAMPLED_ONLY = ["opd", "vopd", "vopd_optimal", "vopd_top_k", "vopd_sparse", "vopd_teacher_top_k"]


@pytest.mark.parametrize("estimator", SAMPLED_ONLY)
def test_importance_weights_scale_sampled_terms(estimator):
    student, teacher, ids = logits()
    weights = torch.linspace(0.5, 2, 6)
    _, plain = loss_and_gradient(student, teacher, ids, estimator)
    out, weighted = loss_and_gradient(student, teacher, ids, estimator, importance_weights=weights)
    torch.testing.assert_close(weighted, plain * weights.unsqueeze(-1))
    torch.testing.assert_close(out.importance_weights, weights)


@pytest.mark.parametrize("estimator", ["full_rkl", "top_k_rkl"])
def test_importance_weights_leave_exact_objectives_alone(estimator):
    student, teacher, ids = logits()
    _, plain = loss_and_gradient(student, teacher, ids, estimator)
    _, weighted = loss_and_gradient(student, teacher, ids, estimator, importance_weights=torch.full((6,), 9.0))
    torch.testing.assert_close(weighted, plain)


@pytest.mark.parametrize("estimator", ["rao_blackwell_top_k", "rao_blackwell_teacher_top_k"])
def test_importance_weights_leave_the_summed_part_of_rao_blackwell_alone(estimator):
    student, teacher, _ = logits()
    model = student if estimator == "rao_blackwell_top_k" else teacher
    weights = {"importance_weights": torch.full((6,), 9.0)}
    for place, changes in ((0, False), (-1, True)):  # the likeliest token is summed, the least likely one sampled
        ids = model.detach().argsort(-1, descending=True)[:, place]
        _, plain = loss_and_gradient(student, teacher, ids, estimator)
        _, weighted = loss_and_gradient(student, teacher, ids, estimator, **weights)
        assert bool((weighted - plain).abs().max() > 1e-4) == changes


def test_rollout_logprobs_give_truncated_importance_weights():
    student, teacher, ids = logits()
    logprobs = student.detach().log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    rollout = logprobs - torch.tensor([-1.0, -0.1, 0.0, 0.1, 1.0, 5.0])
    expected = torch.tensor([-1.0, -0.1, 0.0, 0.1, 1.0, 5.0]).exp().clamp_max(1.5)
    out, gradient = loss_and_gradient(student, teacher, ids, "vopd", rollout_logprobs=rollout, importance_cap=1.5)
    torch.testing.assert_close(out.importance_weights, expected)
    _, weighted = loss_and_gradient(student, teacher, ids, "vopd", importance_weights=expected)
    torch.testing.assert_close(gradient, weighted)


def test_importance_weighting_of_another_samplers_tokens_is_unbiased():
    """E_{y ~ sampler}[w gradient] = E_{y ~ p}[gradient], by enumeration."""
    student, teacher = torch.randn(2, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sampler = (student + 0.3 * teacher).log_softmax(-1)
    logits = student.expand(7, 7).clone().requires_grad_()
    out = vopd.distillation_loss(
        logits, teacher.expand(7, 7), torch.arange(7),
        normalizer=1, rollout_logprobs=sampler, importance_cap=1e9,
    )  # fmt: skip
    out.loss.backward()
    plain = student.expand(7, 7).clone().requires_grad_()
    vopd.distillation_loss(plain, teacher.expand(7, 7), torch.arange(7), normalizer=1).loss.backward()
    torch.testing.assert_close(sampler.exp() @ logits.grad, student.softmax(-1) @ plain.grad)


def test_kl_is_pulled_down_not_pushed_up():
    """A hundred steps of every estimator on a fixed state bring the exact reverse KL down."""
    teacher = torch.randn(9, generator=torch.Generator().manual_seed(1)) * 2
    for estimator in EVERY:
        student = torch.zeros(9, requires_grad=True)
        generator = torch.Generator().manual_seed(0)
        for _ in range(100):
            ids = torch.multinomial(student.detach().softmax(-1), 64, replacement=True, generator=generator)
            _, gradient = loss_and_gradient(student.expand(64, 9), teacher.expand(64, 9), ids, estimator)
            student = (student - gradient.sum(0)).detach().requires_grad_()
        before, after = (
            float(vopd.distillation_loss(s.detach()[None], teacher[None], torch.tensor([0])).reverse_kl)
            for s in (torch.zeros(9), student)
        )
        assert after < 0.6 * before, estimator


def test_the_default_estimator_is_the_papers():
    student, teacher, ids = logits()
    default = vopd.distillation_loss(student, teacher, ids)
    torch.testing.assert_close(default.loss, vopd.distillation_loss(student, teacher, ids, estimator="vopd").loss)


def scores(rows=6, k=3):
    return vopd.TopKScores(torch.zeros(rows), torch.arange(k).expand(rows, k), torch.zeros(rows, k))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimator": "vopdd"}, "did you mean 'vopd'"),
        ({"estimator": "vopd_top_k"}, "needs top_k"),
        ({"top_k": 5}, "has no top_k"),
        ({"estimator": "vopd_top_k", "top_k": 0}, "positive integer"),
        ({"estimator": "vopd_top_k", "top_k": 13}, "exceeds the vocabulary of 12"),
        ({"completion_ids": torch.tensor([0, 1, 2, 3, 4, 12])}, "outside the common vocabulary of 12"),
        ({"completion_ids": torch.tensor([0, 1])}, "to match completion_ids"),
        ({"completion_mask": torch.ones(3)}, "completion_mask has shape"),
        ({"completion_mask": torch.ones(1)}, "completion_mask has shape"),  # would be repeated in silence
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"vocab_size": 13}, "smaller model has 12"),
        ({"teacher_scores": scores()}, "either the teacher's tensors or teacher_scores"),
        ({"teacher_logits": None}, "either the teacher's tensors or teacher_scores"),
        ({"teacher_logits": None, "teacher_scores": scores()}, "needs more from the teacher than its scores"),
        (
            {
                "teacher_logits": None,
                "estimator": "vopd_teacher_top_k",
                "teacher_scores": vopd.TopKScores(torch.zeros(6)),
            },
            "needs top_k_ids",
        ),
        (
            {"teacher_logits": None, "estimator": "vopd_teacher_top_k", "teacher_scores": scores(k=3), "top_k": 5},
            "hold 3 tokens",
        ),
        ({"importance_weights": torch.ones(3)}, "importance_weights has shape"),
        ({"importance_weights": torch.ones(6), "rollout_logprobs": torch.ones(6)}, "not both"),
    ],
)
def test_wrong_input_is_answered_with_the_fix(change, message):
    student, teacher, ids = logits()
    arguments = {"student_logits": student, "teacher_logits": teacher, "completion_ids": ids, **change}
    with pytest.raises(ConfigurationError, match=message):
        vopd.distillation_loss(**arguments)


def test_wrong_heads_are_answered_with_the_fix():
    hidden, head, ids = torch.randn(4, 3), torch.randn(9, 3), torch.arange(4)
    with pytest.raises(ConfigurationError, match=r"student_head has shape \(9, 5\)"):
        vopd.linear_distillation_loss(hidden, torch.randn(9, 5), hidden, head, ids)
    with pytest.raises(ConfigurationError, match="go together"):
        vopd.linear_distillation_loss(hidden, head, hidden, None, ids)
    with pytest.raises(ConfigurationError, match="unknown backend 'cuda'"):
        vopd.linear_distillation_loss(hidden, head, hidden, head, ids, backend="cuda")


@pytest.mark.parametrize("normalizer", [None, 7, 3.3])
def test_a_normaliser_that_is_a_number_does_not_wait_for_the_device(normalizer):
    """It stays on the host, and is the factor of a loss anywhere."""
    rows = torch.empty(5, dtype=torch.long, device="meta")
    weight = losses._weight(normalizer, Batch(rows, rows), torch.float32)
    assert weight == 1 / torch.tensor(5 if normalizer is None else normalizer)
    assert (torch.ones((), device="meta") * weight).is_meta

"""A reward beside the teacher: the caller's advantages are one more sampled term, whatever the estimator."""

from __future__ import annotations

import pytest
import torch

import vopd
from enumeration import exact_gradient, expectation, outcomes, top_k
from vopd.errors import ConfigurationError

EVERY = list(vopd.ESTIMATORS)
REWARDS = torch.tensor([0.3, -1.2, 0.0, 2.0, 0.7, -0.4, 1.1], dtype=torch.float64)


def reward_gradient(student: torch.Tensor) -> torch.Tensor:
    """Of -E_p[e] in the student's logits, by autograd through the whole vocabulary."""
    logits = student.clone().requires_grad_()
    (-(logits.softmax(-1) * REWARDS).sum()).backward()
    assert logits.grad is not None
    return logits.grad


@pytest.mark.parametrize("estimator", EVERY)
def test_expected_gradient_is_that_of_both_objectives(pair, estimator):
    student, teacher = pair
    plain, _ = outcomes(student, teacher, estimator, top_k=top_k(estimator))
    both, _ = outcomes(student, teacher, estimator, top_k=top_k(estimator), extra_advantages=REWARDS)
    target = expectation(student, plain) + reward_gradient(student)
    torch.testing.assert_close(expectation(student, both), target, atol=1e-10, rtol=0)
    if vopd.ESTIMATORS[estimator].unbiased:
        exact = exact_gradient(student, teacher) + reward_gradient(student)
        torch.testing.assert_close(expectation(student, both), exact, atol=1e-10, rtol=0)


@pytest.mark.parametrize("estimator", ["opd", "vopd", "vopd_optimal", "vopd_top_k", "vopd_teacher_top_k"])
def test_it_is_added_to_the_advantage_where_the_estimator_samples(pair, estimator):
    student, teacher = pair
    _, plain = outcomes(student, teacher, estimator, top_k=top_k(estimator))
    both, out = outcomes(student, teacher, estimator, top_k=top_k(estimator), extra_advantages=REWARDS)
    torch.testing.assert_close(out.advantages, plain.advantages)  # the teacher's part alone
    written = -((plain.advantages + REWARDS).unsqueeze(-1)) * (torch.eye(7).double() - student.softmax(-1))
    torch.testing.assert_close(both, written, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(out.loss.detach(), -((plain.advantages + REWARDS) * out.student_logprobs).sum())


@pytest.mark.parametrize("estimator", EVERY)
def test_importance_weights_weigh_it_too(pair, estimator):
    """Drawn from another distribution and weighed, the expectation is the same."""
    student, teacher = pair
    drawn = student.roll(1).softmax(-1) * 0.5 + 0.5 / 7
    weights = student.softmax(-1) / drawn
    options = {"top_k": top_k(estimator), "importance_weights": weights}
    plain, _ = outcomes(student, teacher, estimator, **options)
    both, _ = outcomes(student, teacher, estimator, **options, extra_advantages=REWARDS)
    difference = torch.einsum("v,vw->w", drawn, both - plain)
    torch.testing.assert_close(difference, reward_gradient(student), atol=1e-9, rtol=0)


def test_it_is_detached_masked_and_follows_the_fused_path():
    generator = torch.Generator().manual_seed(0)
    hidden, other = torch.randn(2, 2, 5, 8, generator=generator)
    head, other_head = torch.randn(2, 11, 8, generator=generator)
    ids = torch.randint(11, (2, 5), generator=generator)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    extra = torch.randn(2, 5, generator=generator).requires_grad_()
    for estimator in EVERY:
        gradients = []
        options = {"estimator": estimator, "top_k": top_k(estimator), "extra_advantages": extra}
        for fused in (False, True):
            weight = head.clone().requires_grad_()
            if fused:
                out = vopd.linear_distillation_loss(
                    hidden, weight, other, other_head, ids, mask, chunk_size=3, **options
                )
            else:
                out = vopd.distillation_loss(hidden @ weight.T, other @ other_head.T, ids, mask, **options)
            out.loss.backward()
            gradients.append(weight.grad)
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    assert extra.grad is None


def test_its_shape_is_that_of_the_ids():
    logits = torch.randn(2, 3, 4)
    with pytest.raises(ConfigurationError, match="extra_advantages has shape"):
        vopd.distillation_loss(logits, logits, torch.zeros(2, 3, dtype=torch.long), extra_advantages=torch.ones(2))

"""Unbiasedness by exact enumeration: E_y[gradient] against the gradient of the exact reverse KL."""

from __future__ import annotations

import pytest
import torch

import vopd
from enumeration import exact_gradient, expectation, outcomes, top_k

UNBIASED = [name for name, estimator in vopd.ESTIMATORS.items() if estimator.unbiased]
WITH_K = [name for name in UNBIASED if vopd.ESTIMATORS[name].needs_top_k]


def test_only_the_truncated_objective_is_declared_biased():
    assert set(vopd.ESTIMATORS) - set(UNBIASED) == {"top_k_rkl"}


@pytest.mark.parametrize("estimator", UNBIASED)
def test_expected_gradient_is_that_of_the_exact_reverse_kl(pair, estimator):
    student, teacher = pair
    gradients, _ = outcomes(student, teacher, estimator, top_k=top_k(estimator))
    torch.testing.assert_close(expectation(student, gradients), exact_gradient(student, teacher), atol=1e-10, rtol=0)


@pytest.mark.parametrize("estimator", WITH_K)
@pytest.mark.parametrize("k", [1, 2, 5, 7])
def test_any_k_is_unbiased(pair, estimator, k):
    student, teacher = pair
    gradients, _ = outcomes(student, teacher, estimator, top_k=k)
    torch.testing.assert_close(expectation(student, gradients), exact_gradient(student, teacher), atol=1e-10, rtol=0)


def scores(teacher: torch.Tensor, k: int, digits: int | None = None) -> vopd.TopKScores:
    """What a server would send for every possible sampled token, rounded to so many binary digits."""
    logprobs = teacher.log_softmax(-1)
    if digits is not None:
        logprobs = torch.round(logprobs * 2**digits) / 2**digits
    top = logprobs.topk(k)
    vocab = len(teacher)
    return vopd.TopKScores(logprobs, top.indices.expand(vocab, k), top.values.expand(vocab, k))


@pytest.mark.parametrize("estimator", [n for n in UNBIASED if vopd.ESTIMATORS[n].teacher_scores])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_server_scores_are_unbiased(pair, estimator, k):
    student, teacher = pair
    gradients, _ = outcomes(student, teacher, estimator, teacher_scores=scores(teacher, k))
    torch.testing.assert_close(expectation(student, gradients), exact_gradient(student, teacher), atol=1e-10, rtol=0)


@pytest.mark.parametrize("estimator", ["vopd_teacher_top_k", "vopd_teacher_top_k_optimal"])
def test_rounded_and_tied_server_scores_bias_no_more_than_the_reward(pair, estimator):
    """With rounded scores the target is the gradient under the rounded rewards; the baseline adds no bias to it."""
    student, teacher = pair
    rounded = scores(teacher, 3, digits=2)
    plain, _ = outcomes(student, teacher, "opd", teacher_scores=rounded)
    gradients, _ = outcomes(student, teacher, estimator, teacher_scores=rounded)
    torch.testing.assert_close(expectation(student, gradients), expectation(student, plain), atol=1e-10, rtol=0)


def test_truncated_objective_is_biased_and_exact_only_at_full_k(pair):
    student, teacher = pair
    exact = exact_gradient(student, teacher)
    truncated, _ = outcomes(student, teacher, "top_k_rkl", top_k=3)
    full, _ = outcomes(student, teacher, "top_k_rkl", top_k=7)
    torch.testing.assert_close(full[0], exact, atol=1e-10, rtol=0)
    assert (truncated[0] - exact).norm() > 1e-4 * exact.norm()


def test_support_that_includes_the_sampled_token_is_biased():
    """A server appends the sampled token to its top k; left in the support, it makes the baseline depend on y."""
    student, teacher = torch.randn(2, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logprobs = teacher.log_softmax(-1)
    top = logprobs.topk(2).indices
    ids = torch.stack([torch.cat([top, torch.tensor([y])]) for y in range(7)])
    values = logprobs[ids]
    values[torch.isin(torch.arange(7), top), 2] = -torch.inf  # in the top 2 already: no third entry
    wrong = vopd.TopKScores(logprobs, ids, values)
    gradients, _ = outcomes(student, teacher, "vopd_teacher_top_k", teacher_scores=wrong)
    bias = expectation(student, gradients) - exact_gradient(student, teacher)
    assert bias.norm() > 1e-2


def test_state_only_advantage_has_zero_expected_gradient(pair):
    """The mirror image: what a baseline adds to the expected gradient, E_p[b (p - e_y)], is zero."""
    student, teacher = pair
    value = -(student.softmax(-1) * (student.log_softmax(-1) - teacher.log_softmax(-1))).sum()
    score = student.softmax(-1) - torch.eye(7, dtype=torch.float64)
    torch.testing.assert_close(expectation(student, value * score), torch.zeros(7).double(), atol=1e-12, rtol=0)


def test_reward_left_attached_in_the_log_form_gives_advantage_r_minus_log_p():
    """-r log p with the gradient flowing into r: the advantage becomes r - log p(y), a biased estimator."""
    student, teacher = torch.randn(2, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits = student.expand(7, 7).clone().requires_grad_()
    logprobs = logits.log_softmax(-1).diagonal()
    rewards = teacher.log_softmax(-1) - logprobs
    (-(rewards * logprobs)).sum().backward()
    expected = expectation(student, logits.grad)
    advantages = (rewards - logprobs).detach()
    score = torch.eye(7, dtype=torch.float64) - student.softmax(-1)
    torch.testing.assert_close(expected, expectation(student, -advantages.unsqueeze(-1) * score))
    assert (expected - exact_gradient(student, teacher)).norm() > 1e-2


def test_reward_left_attached_in_the_ratio_form_gives_advantage_r_minus_one():
    """-r exp(log p - sg[log p]) with the gradient flowing into r: r - 1, unbiased with several times the variance."""
    student, teacher = torch.randn(2, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    teacher = student + 0.1 * teacher
    logits = student.expand(7, 7).clone().requires_grad_()
    logprobs = logits.log_softmax(-1).diagonal()
    rewards = teacher.log_softmax(-1) - logprobs
    (-(rewards * (logprobs - logprobs.detach()).exp())).sum().backward()
    exact = exact_gradient(student, teacher)
    torch.testing.assert_close(expectation(student, logits.grad), exact, atol=1e-10, rtol=0)
    vanilla, _ = outcomes(student, teacher, "opd")

    def variance(gradients):
        return expectation(student, (gradients - exact).square().sum(-1))

    assert variance(logits.grad) > 3 * variance(vanilla)

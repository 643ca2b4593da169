"""Each equation on its own: limits and hand-worked cases. Unbiasedness and optimality are in tests/estimators."""

from __future__ import annotations

import math

import pytest
import torch

from vopd.functional import (
    bucket_log_ratio,
    bucketed_moments,
    centred_optimal_baseline,
    centred_value_baseline,
    importance_weights,
    moments,
    optimal_baseline,
    outside_mean_baseline,
    policy_gradient_loss,
    rao_blackwell_loss,
    renormalised_top_k_baseline,
    reverse_kl,
    sparse_top_k_baseline,
    truncated_reverse_kl,
    value_baseline,
)


def logprobs(*probs: float) -> torch.Tensor:
    return torch.tensor(probs, dtype=torch.float64).log()


def test_reverse_kl_of_a_worked_case_and_its_direction():
    student, teacher = logprobs(0.5, 0.5), logprobs(0.75, 0.25)
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert float(reverse_kl(student, teacher)) == pytest.approx(expected)
    assert float(reverse_kl(teacher, student)) != pytest.approx(expected, rel=1e-3)


def test_reverse_kl_counts_nothing_where_the_student_has_no_mass():
    student, teacher = logprobs(1.0, 0.0), logprobs(0.5, 0.5)
    assert float(reverse_kl(student, teacher)) == pytest.approx(math.log(2))
    assert float(reverse_kl(student, logprobs(1.0, 0.0))) == 0


def test_tokens_that_the_student_excludes_count_for_nothing():
    """In value and in gradient, whatever the teacher gives them: as if the vocabulary ended before them."""
    student, teacher = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    excluded = student.clone()
    excluded[:, 5:] = -torch.inf

    def found(student, rewards_of, support):
        logits = student.clone().requires_grad_()
        logprobs = logits.log_softmax(-1)
        ids, rewards = torch.tensor([0, 4, 2]), rewards_of - logprobs.detach()
        stated = moments(logits, rewards_of)
        centred = sparse_top_k_baseline(logits.gather(-1, support), rewards.gather(-1, support))
        losses = [
            reverse_kl(logprobs, rewards_of),
            rao_blackwell_loss(logprobs, rewards, torch.zeros(3).double(), ids, support),
            centred_value_baseline(stated),
            centred_optimal_baseline(stated),
            centred,
        ]
        (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), logits)
        return torch.stack(losses), gradient[:, :5]

    scores = teacher.log_softmax(-1)
    wide = found(excluded, scores, torch.tensor([[0, 1, 6, 2, 5]]).expand(3, 5))
    narrow = found(student[:, :5], scores[:, :5], torch.tensor([[0, 1, 2]]).expand(3, 3))
    for ours, theirs in zip(wide, narrow):
        torch.testing.assert_close(ours, theirs)


def test_truncated_reverse_kl_follows_no_shift():
    student, teacher = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(truncated_reverse_kl(student + 3, teacher - 2), truncated_reverse_kl(student, teacher))
    torch.testing.assert_close(renormalised_top_k_baseline(student, teacher), -truncated_reverse_kl(student, teacher))


def test_moments_of_a_worked_case():
    student, teacher = logprobs(0.5, 0.3, 0.2), logprobs(0.2, 0.3, 0.5)
    stated = moments(student, teacher)
    rewards = teacher - student
    centred = rewards - rewards[0]
    assert float(stated.top_reward) == pytest.approx(float(rewards[0]))
    assert float(stated.rest_prob) == pytest.approx(0.5)
    assert float(stated.rest_square_prob) == pytest.approx(0.13)
    assert float(stated.centred_reward) == pytest.approx(float(0.3 * centred[1] + 0.2 * centred[2]))
    assert float(stated.square_centred_reward) == pytest.approx(float(0.09 * centred[1] + 0.04 * centred[2]))
    assert float(stated.square_prob) == pytest.approx(0.38)
    assert float(stated.weight) == pytest.approx(0.62)
    assert float(value_baseline(stated)) == pytest.approx(-float(reverse_kl(student, teacher)))


def test_two_tokens_leave_no_variance_to_the_optimal_baseline():
    """With two tokens (r_y - b)(p - e_y) is constant at b* = p_1 r_2 + p_2 r_1."""
    student, teacher = logprobs(0.7, 0.3), logprobs(0.4, 0.6)
    stated = moments(student, teacher)
    rewards = teacher - student
    expected = 0.7 * rewards[1] + 0.3 * rewards[0]
    assert float(optimal_baseline(stated)) == pytest.approx(float(expected))


def test_a_student_certain_to_the_last_digit_gets_a_finite_baseline():
    stated = moments(torch.tensor([0.0, -1e4]), torch.tensor([0.0, 1.0]))
    assert float(centred_optimal_baseline(stated)) == 0
    assert float(optimal_baseline(stated)) == float(stated.top_reward)


def test_sparse_baseline_follows_a_shift_of_the_rewards():
    student, rewards = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(sparse_top_k_baseline(student, rewards + 2), sparse_top_k_baseline(student, rewards) + 2)


def test_bucket_reward_has_a_floor_and_an_unreachable_bucket_counts_nothing():
    everything = logprobs(0.5, 0.5)
    assert float(bucket_log_ratio(everything, torch.tensor(0.1))) == pytest.approx(math.log(1e-9 / 0.1))
    assert float(bucket_log_ratio(everything, torch.tensor(0.0))) == 0
    absent = torch.tensor([math.log(0.5), -torch.inf])
    assert float(bucket_log_ratio(absent, torch.tensor(0.25))) == pytest.approx(math.log(2), rel=1e-6)


def test_bucketed_moments_of_a_worked_case():
    """Student (.5, .3, .1, .1), support {1}, bucket reward -1: the top token is in the bucket."""
    stated = bucketed_moments(
        top_prob=torch.tensor(0.5),
        top_reward=torch.tensor(-1.0),
        support_probs=torch.tensor([0.3, 0.0]),
        support_rewards=torch.tensor([2.0, 99.0]),
        other_prob=torch.tensor(0.2),
        other_square_prob=torch.tensor(0.02),
        bucket_reward=torch.tensor(-1.0),
    )
    assert float(value_baseline(stated)) == pytest.approx(0.3 * 2 - 0.7)
    assert float(stated.rest_prob) == pytest.approx(0.5)
    assert float(stated.square_prob) == pytest.approx(0.25 + 0.09 + 0.02)


def test_outside_mean_falls_back_where_nothing_is_outside():
    found = outside_mean_baseline(torch.tensor([0.5, 0.0]), torch.tensor([1.0, 0.0]), torch.tensor([7.0, 7.0]))
    assert found.tolist() == [2.0, 7.0]


def test_policy_gradient_detaches_advantages_and_weights():
    sampled, advantages, weights = (torch.tensor([2.0, 3.0], requires_grad=True) for _ in range(3))
    policy_gradient_loss(sampled, advantages, weights).sum().backward()
    assert sampled.grad.tolist() == [-4.0, -9.0]
    assert advantages.grad is None and weights.grad is None


def test_importance_weights_are_capped_and_detached():
    trainer = torch.tensor([0.0, 1.0, -1.0], requires_grad=True)
    weights = importance_weights(trainer, torch.tensor([0.0, 0.0, 0.0]), cap=2.0)
    assert weights.tolist() == pytest.approx([1.0, 2.0, math.exp(-1)])
    assert not weights.requires_grad

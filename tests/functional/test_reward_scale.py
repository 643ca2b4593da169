"""What is returned on the scale of the rewards is what the name says, by sums over the vocabulary; and what the centred
forms keep that is lost on that scale."""

from __future__ import annotations

import pytest
import torch

from vopd.functional import (
    bucketed_moments,
    centred_optimal_baseline,
    centred_value_baseline,
    gradient_variance,
    gradient_variance_from_centred,
    moments,
    optimal_baseline,
    squared_gradient_norm,
    value_baseline,
)

STUDENT, TEACHER = 2 * torch.randn(2, 3, 4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PROBS = STUDENT.softmax(-1)
REWARDS = TEACHER.log_softmax(-1) - STUDENT.log_softmax(-1)
SCORES = torch.eye(9, dtype=torch.float64) - PROBS.unsqueeze(-2)  # e_v - p, (..., v, V)
WEIGHTS = SCORES.square().sum(-1)

# From flat to certain, 1 - p_top = 1e-10.
EXPONENTS = range(1, 11)


def near_certain(exponent: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits in float32 of a student whose other nine tokens have 10^-exponent together, and of some teacher."""
    generator = torch.Generator().manual_seed(exponent)
    rest = torch.randn(9, generator=generator, dtype=torch.float64)
    top = torch.tensor([10.0**exponent - 1], dtype=torch.float64).log() + rest.logsumexp(-1)
    return torch.cat([top, rest]).float(), torch.randn(10, generator=generator).mul(2)


def test_the_value_baseline_is_the_expected_reward() -> None:
    kl = (PROBS * (STUDENT.log_softmax(-1) - TEACHER.log_softmax(-1))).sum(-1)
    torch.testing.assert_close(value_baseline(moments(STUDENT, TEACHER)), -kl, atol=1e-12, rtol=0)


def test_the_optimal_baseline_is_the_weighted_mean_reward() -> None:
    expected = (PROBS * WEIGHTS * REWARDS).sum(-1) / (PROBS * WEIGHTS).sum(-1)
    torch.testing.assert_close(optimal_baseline(moments(STUDENT, TEACHER)), expected, atol=1e-12, rtol=0)


def test_the_variance_is_the_enumerated_one_for_any_baseline() -> None:
    stated = moments(STUDENT, TEACHER)
    exact = ((REWARDS * PROBS).unsqueeze(-1) * -SCORES).sum(-2)
    torch.testing.assert_close(squared_gradient_norm(stated), exact.square().sum(-1), atol=1e-12, rtol=0)
    zero = torch.zeros_like(REWARDS[..., 0])
    for baseline in (zero, zero - 3, REWARDS.amax(-1), value_baseline(stated), optimal_baseline(stated)):
        gradients = (REWARDS - baseline.unsqueeze(-1)).unsqueeze(-1) * -SCORES
        off = (gradients - exact.unsqueeze(-2)).square().sum(-1)
        torch.testing.assert_close(gradient_variance(stated, baseline), (PROBS * off).sum(-1), atol=1e-10, rtol=1e-10)


def test_a_centred_baseline_is_the_baseline_less_the_top_tokens_reward() -> None:
    top_reward = REWARDS.gather(-1, STUDENT.argmax(-1, keepdim=True)).squeeze(-1)
    stated = moments(STUDENT, TEACHER)
    torch.testing.assert_close(stated.top_reward, top_reward)
    for centred, public in (
        (centred_value_baseline, value_baseline),
        (centred_optimal_baseline, optimal_baseline),
    ):
        torch.testing.assert_close(centred(stated), public(stated) - top_reward, atol=1e-12, rtol=0)
        torch.testing.assert_close(
            gradient_variance_from_centred(stated, centred(stated)), gradient_variance(stated, public(stated))
        )


def test_the_baselines_of_bucketed_rewards_are_those_of_the_same_rewards_written_out() -> None:
    """Student (.5, .3, .1, .1), rewards (-1, 2, -1, -1): the second token is the support."""
    probs, rewards = torch.tensor([0.5, 0.3, 0.1, 0.1]).double(), torch.tensor([-1.0, 2.0, -1.0, -1.0]).double()
    stated = bucketed_moments(
        top_prob=probs[0], top_reward=rewards[0], support_probs=probs[1:2], support_rewards=rewards[1:2],
        other_prob=probs[2:].sum(), other_square_prob=probs[2:].square().sum(), bucket_reward=rewards[3],
    )  # fmt: skip
    weights = 1 - 2 * probs + probs.square().sum()
    torch.testing.assert_close(value_baseline(stated), (probs * rewards).sum())
    torch.testing.assert_close(optimal_baseline(stated), (probs * weights * rewards).sum() / (probs * weights).sum())


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize(
    ("centred", "public"),
    [(centred_value_baseline, value_baseline), (centred_optimal_baseline, optimal_baseline)],
    ids=["value", "optimal"],
)
def test_float32_keeps_the_digits_of_a_centred_baseline_alone(exponent, centred, public) -> None:
    student, teacher = near_certain(exponent)
    found, exact = moments(student, teacher), moments(student.double(), teacher.double())
    assert float(centred(found).double() / centred(exact)) == pytest.approx(1, abs=1e-5)
    error = float((public(found).double() - public(exact)).abs())
    assert error < 4e-7 * (1 + float(exact.top_reward.abs())) + 1e-5 * float(centred(exact).abs())


def test_the_rewards_scale_loses_the_value_of_a_certain_student() -> None:
    """Of V' = 1e-10 nothing is left after r_top was added, which is why the estimators take the centred form."""
    student, teacher = near_certain(10)
    found, exact = moments(student, teacher), moments(student.double(), teacher.double())
    centred = float(centred_value_baseline(exact))
    assert 0 < abs(centred) < 1e-8
    assert abs(float(value_baseline(found) - found.top_reward) / centred - 1) > 0.5

"""Baselines by enumeration: what is least, what the closed forms say, and what float32 keeps."""

from __future__ import annotations

import pytest
import torch

import vopd
from enumeration import exact_gradient, expectation, outcomes
from vopd.functional import centred_optimal_baseline, gradient_variance, moments, optimal_baseline, value_baseline


def enumerated_variance(student, teacher, baseline):
    """Trace of Cov[(r_y - b)(p - e_y)] over y ~ p."""
    probs = student.softmax(-1)
    rewards = teacher.log_softmax(-1) - student.log_softmax(-1)
    gradients = (rewards - baseline).unsqueeze(-1) * (probs - torch.eye(len(student), dtype=student.dtype))
    mean = expectation(student, gradients)
    return expectation(student, (gradients - mean).square().sum(-1))


def test_value_baseline_is_the_negative_reverse_kl(pair):
    student, teacher = pair
    _, out = outcomes(student, teacher, "vopd")
    kl = (student.softmax(-1) * (student.log_softmax(-1) - teacher.log_softmax(-1))).sum().expand(7)
    torch.testing.assert_close(out.baseline, -kl, atol=1e-12, rtol=0)
    torch.testing.assert_close(out.reverse_kl, kl, atol=1e-12, rtol=0)
    torch.testing.assert_close(out.advantages, out.rewards - out.baseline, atol=1e-10, rtol=0)


def test_optimal_baseline_is_the_brute_force_minimum(pair):
    student, teacher = pair
    _, out = outcomes(student, teacher, "vopd_optimal")
    best = out.baseline[0]
    least = enumerated_variance(student, teacher, best)
    for step in (1e-3, 0.1, 1.0):
        for other in (best - step, best + step):
            assert enumerated_variance(student, teacher, other) >= least
    for name in ("opd", "vopd"):
        _, other = outcomes(student, teacher, name)
        assert least <= enumerated_variance(student, teacher, other.baseline[0]) + 1e-15


def test_closed_form_variance_is_the_enumerated_one(pair):
    student, teacher = pair
    _, out = outcomes(student, teacher, "vopd_optimal", diagnostics=True)
    _, value = outcomes(student, teacher, "vopd")
    for closed, baseline in [
        (out.variance.none, torch.zeros(7)),
        (out.variance.value, value.baseline),
        (out.variance.optimal, out.baseline),
    ]:
        torch.testing.assert_close(closed[0], enumerated_variance(student, teacher, baseline[0]), atol=1e-12, rtol=1e-6)


@pytest.mark.parametrize("seed", range(40))
def test_value_baseline_beats_none_exactly_where_the_optimal_one_is_below_half_of_it(seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2.5 * torch.randn(2, 7, generator=generator, dtype=torch.float64)
    _, value = outcomes(student, teacher, "vopd")
    _, best = outcomes(student, teacher, "vopd_optimal")
    wins = enumerated_variance(student, teacher, value.baseline[0]) < enumerated_variance(student, teacher, 0.0)
    assert bool(wins) == bool(best.baseline[0] < value.baseline[0] / 2)


def test_value_baseline_hurts_a_student_that_is_confidently_wrong():
    """The known example: 0.99 on a token that the teacher gives 0.01."""
    student = torch.tensor([0.99] + [0.01 / 99] * 99, dtype=torch.float64).log()
    teacher = torch.tensor([0.01] + [0.99 / 99] * 99, dtype=torch.float64).log()
    stated = moments(student, teacher)
    none, value, best = (
        float(gradient_variance(stated, baseline))
        for baseline in (torch.zeros_like(stated.top_reward), value_baseline(stated), optimal_baseline(stated))
    )
    assert value > 3 * none
    assert best < none / 10


@pytest.mark.parametrize("exponent", range(1, 11))
def test_optimal_baseline_keeps_its_digits_in_float32(exponent):
    """Down to 1 - p_top = 1e-10, where 1 - S2 is 0 in float32."""
    generator = torch.Generator().manual_seed(exponent)
    rest = torch.randn(9, generator=generator, dtype=torch.float64)
    odds = torch.tensor([10.0**exponent - 1], dtype=torch.float64).log() + rest.logsumexp(-1)
    student = torch.cat([odds, rest]).float()
    teacher = torch.randn(10, generator=generator).mul(2)
    exact = moments(student.double(), teacher.double())
    reference = centred_optimal_baseline(exact)
    for baseline in (
        centred_optimal_baseline(moments(student, teacher)).double(),
        vopd.distillation_loss(student[None], teacher[None], torch.tensor([0]), estimator="vopd_optimal")
        .advantages[0]
        .double()
        .neg(),
    ):  # the advantage of the top token is 0 - b'
        assert abs(float(baseline / reference) - 1) < 1e-5


@pytest.mark.parametrize("estimator", ["vopd_top_k", "vopd_sparse", "vopd_teacher_top_k"])
def test_full_k_is_the_value_baseline(pair, estimator):
    student, teacher = pair
    full, _ = outcomes(student, teacher, "vopd")
    truncated, _ = outcomes(student, teacher, estimator, top_k=7)
    torch.testing.assert_close(truncated, full, atol=1e-9, rtol=1e-9)


def test_full_k_of_the_teacher_is_the_optimal_baseline(pair):
    student, teacher = pair
    full, _ = outcomes(student, teacher, "vopd_optimal")
    truncated, _ = outcomes(student, teacher, "vopd_teacher_top_k_optimal", top_k=7)
    torch.testing.assert_close(truncated, full, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("estimator", ["rao_blackwell_top_k", "rao_blackwell_teacher_top_k"])
def test_full_k_of_rao_blackwell_is_the_exact_gradient(pair, estimator):
    student, teacher = pair
    gradients, _ = outcomes(student, teacher, estimator, top_k=7)
    torch.testing.assert_close(gradients, exact_gradient(student, teacher).expand(7, 7), atol=1e-10, rtol=0)


def test_papers_truncated_baseline_is_zero_at_k_1(pair):
    student, teacher = pair
    _, out = outcomes(student, teacher, "vopd_top_k", top_k=1)
    assert out.baseline.abs().max() == 0


def test_papers_truncated_baseline_renormalises_both_models():
    student, teacher = torch.randn(2, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ids = student.topk(4).indices
    probs, other = student[ids].softmax(-1), teacher[ids].softmax(-1)
    _, out = outcomes(student, teacher, "vopd_top_k", top_k=4)
    torch.testing.assert_close(out.baseline[0], -(probs * (probs / other).log()).sum(), atol=1e-12, rtol=0)


def test_sparse_baseline_renormalises_the_student_only():
    student, teacher = torch.randn(2, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ids = student.topk(4).indices
    rewards = teacher.log_softmax(-1) - student.log_softmax(-1)
    _, out = outcomes(student, teacher, "vopd_sparse", top_k=4)
    torch.testing.assert_close(out.baseline[0], (student[ids].softmax(-1) * rewards[ids]).sum(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("optimal", [False, True])
def test_bucket_baseline_as_its_formula_says(pair, optimal):
    student, teacher = pair
    probs, logprobs = student.softmax(-1), student.log_softmax(-1)
    inside = torch.zeros(7, dtype=torch.bool)
    inside[teacher.topk(3).indices] = True
    rest_probs = probs[~inside].sum()
    rest_reward = (1 - teacher.softmax(-1)[inside].sum()).clamp_min(1e-9).log() - rest_probs.log()
    rewards = torch.where(inside, teacher.log_softmax(-1) - logprobs, rest_reward)
    weights = (1 - 2 * probs + probs.square().sum()) if optimal else torch.ones(7, dtype=torch.float64)
    name = "vopd_teacher_top_k_optimal" if optimal else "vopd_teacher_top_k"
    _, out = outcomes(student, teacher, name, top_k=3)
    expected = (probs * weights * rewards).sum() / (probs * weights).sum()
    torch.testing.assert_close(out.baseline[0], expected, atol=1e-7, rtol=1e-7)


def test_rao_blackwell_baselines_are_the_mean_reward_outside_the_support():
    student, teacher = torch.randn(2, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rewards = teacher.log_softmax(-1) - student.log_softmax(-1)
    outside = torch.ones(7, dtype=torch.bool)
    outside[student.topk(3).indices] = False
    probs = student.softmax(-1)
    _, out = outcomes(student, teacher, "rao_blackwell_top_k", top_k=3)
    torch.testing.assert_close(out.baseline[0], (probs * rewards)[outside].sum() / probs[outside].sum())

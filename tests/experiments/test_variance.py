"""The parts of a gradient's variance against exact enumeration on a model small enough to enumerate."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from vopd.errors import ConfigurationError
from vopd.estimators import distillation_loss
from vopd.experiments.rollouts import Rollout
from vopd.experiments.teacher_states import local_states
from vopd.experiments.variance import decompose_variance, gradient_noise, variance_profile
from vopd.statistics import ratio_of_means

# Thousands of losses, one a token enumerated: the checks would double the time.
pytestmark = pytest.mark.usefixtures("without_checks_of_shapes")

VOCAB = 4
ROLLOUTS = [Rollout([0, 1], [2, 3]), Rollout([0], [3]), Rollout([2, 1], [1, 1, 0])]
LENGTH = 2.0


def tiny(seed: int, rows: int) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=rows, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=False, initializer_range=0.8,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def models():
    return tiny(0, VOCAB), tiny(1, VOCAB + 2)


@pytest.fixture(scope="module")
def pair(models):
    return models[0], local_states(models[1])


def logits(models, rollout):
    """Student's and teacher's logits at the completion's tokens."""
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
    first = len(rollout.prompt_ids) - 1
    student, teacher = models
    with torch.no_grad():
        other = teacher(ids).logits[0, first:-1, :VOCAB]
    return student(ids).logits[0, first:-1], other


def flat(parameters, loss):
    parts = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    zeros = [torch.zeros_like(p) if part is None else part for p, part in zip(parameters, parts)]
    return torch.cat([part.flatten() for part in zeros])


def exact_gradient(models, rollout):
    own, other = (values.log_softmax(-1) for values in logits(models, rollout))
    return flat(list(models[0].parameters()), (own.exp() * (own - other)).sum() / LENGTH)


def own_gradient(models, rollout, baseline):
    own, other = (values.log_softmax(-1) for values in logits(models, rollout))
    loss = 0.0
    for row, target, token in zip(own, other, rollout.completion_ids):
        rewards = (target - row).detach()
        value = (row.detach().exp() * rewards).sum() if baseline else 0.0
        loss = loss - (rewards[token] - value) * row[token] / LENGTH
    return flat(list(models[0].parameters()), loss)


def token_variance(models, rollout, baseline, length=LENGTH):
    """Tokens are redrawn independently, so that the trace of the covariance is a sum over positions."""
    own, other = (values.log_softmax(-1) for values in logits(models, rollout))
    total = 0.0
    for row, target in zip(own, other):
        probs, rewards = row.detach().exp(), (target - row).detach()
        value = (probs * rewards).sum() if baseline else 0.0
        gradients = torch.stack(
            [flat(list(models[0].parameters()), -(rewards[v] - value) * row[v] / length) for v in range(VOCAB)]
        )
        total += float(probs @ (gradients - probs @ gradients).square().sum(-1))
    return total


def own_top_k(models, rollout):
    """Gradient of the KL of both models renormalised on the student's two most likely tokens."""
    own, other = logits(models, rollout)
    ids = own.detach().topk(2, -1).indices
    own, other = (values.gather(-1, ids).log_softmax(-1) for values in (own, other))
    return flat(list(models[0].parameters()), (own.exp() * (own - other)).sum() / LENGTH)


def spread(gradients):
    stacked = torch.stack(gradients)
    return float((stacked - stacked.mean(0)).square().sum() / (len(gradients) - 1))


@pytest.mark.parametrize(("name", "baseline"), [("opd", False), ("vopd", True)])
def test_the_parts_are_the_enumerated_ones(models, pair, name, baseline):
    found = decompose_variance(*pair, ROLLOUTS, estimators=[name], resamples=400, seed=5)
    noise = found.estimators[name]
    expected = sum(token_variance(models, rollout, baseline) for rollout in ROLLOUTS) / len(ROLLOUTS)
    signal = sum(float(exact_gradient(models, rollout).square().sum()) for rollout in ROLLOUTS) / len(ROLLOUTS)
    assert noise.token.value == pytest.approx(expected, rel=0.1)
    assert noise.signal_to_noise.value == pytest.approx(signal / expected, rel=0.1)
    assert found.context.value == pytest.approx(spread([exact_gradient(models, r) for r in ROLLOUTS]), rel=1e-4)
    own = [own_gradient(models, rollout, baseline) for rollout in ROLLOUTS]
    assert noise.total.value == pytest.approx(spread(own), rel=1e-4)
    assert abs(noise.relative_bias.value) < 0.02
    assert 0 < noise.cosine.value < 1 and noise.token.low <= noise.token.value <= noise.token.high


def test_exact_and_biased_estimators_are_told_apart(models, pair):
    found = decompose_variance(*pair, ROLLOUTS, estimators=["full_rkl", "top_k_rkl"], top_k=2, resamples=4)
    exact, biased = found.estimators["full_rkl"], found.estimators["top_k_rkl"]
    assert exact.token.value == pytest.approx(0, abs=1e-12) and exact.signal_to_noise is None
    assert exact.cosine.value == pytest.approx(1, abs=1e-5) and exact.total.value == pytest.approx(found.context.value)
    errors = [(own_top_k(models, rollout) - exact_gradient(models, rollout)).square().sum() for rollout in ROLLOUTS]
    signals = [exact_gradient(models, rollout).square().sum() for rollout in ROLLOUTS]
    assert biased.relative_bias.value == pytest.approx(float(sum(errors) / sum(signals)), rel=1e-3)


def test_the_profile_is_the_closed_form_by_position_and_entropy(models, pair):
    profile = variance_profile(*pair, ROLLOUTS, bins=3)
    student, teacher = (torch.cat(parts) for parts in zip(*(logits(models, rollout) for rollout in ROLLOUTS)))
    ids = torch.tensor([token for rollout in ROLLOUTS for token in rollout.completion_ids])
    expected = distillation_loss(student.detach(), teacher, ids, diagnostics=True)
    first = [0, 2, 3]
    assert (profile.by_position[0].low, profile.by_position[0].tokens) == (1, 3)
    assert profile.by_position[0].optimal == pytest.approx(float(expected.variance.optimal[first].mean()), rel=1e-4)
    for bins in (profile.by_position, profile.by_entropy):
        assert sum(entry.tokens for entry in bins) == len(ids)
        mean = sum(entry.tokens * entry.value for entry in bins) / len(ids)
        assert mean == pytest.approx(float(expected.variance.value.mean()), rel=1e-4)
    hurts = (expected.variance.value > expected.variance.none).double().mean()
    share = profile.value_hurts_share
    assert share.value == pytest.approx(float(hurts)) and 0 <= share.low < share.high <= 1  # three contexts: wide
    assert all(low.high <= high.low for low, high in zip(profile.by_entropy, profile.by_entropy[1:]))


def test_the_ratio_is_one_of_sums_and_its_interval_holds_pairs_together():
    values = torch.tensor([1.0, 2.0, 3.0])
    found = ratio_of_means(2 * values, values)
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))
    assert math.isclose(ratio_of_means(values, torch.ones(3)).value, 2)


@pytest.mark.parametrize(("kind", "least"), [("gamma", 0.90), ("normal", 0.93)])
def test_the_interval_of_a_ratio_holds_the_truth_about_as_often_as_it_says(kind, least):
    """16 contexts, as `vopd variance` draws them; a percentile bootstrap holds it in 0.84 and 0.91 of the cases."""
    generator = torch.Generator().manual_seed(0)
    repeats, contexts = 2000, 16
    signal = torch.rand(repeats, contexts, generator=generator, dtype=torch.float64) + 0.5
    normal = torch.randn(repeats, contexts, generator=generator, dtype=torch.float64)
    # Either skewed and positive, like squared norms, or symmetric about its mean.
    factor = normal.square() if kind == "gamma" else 1 + normal
    held = [
        found.low <= 1 <= found.high
        for above, below in zip(signal * factor, signal)
        for found in [ratio_of_means(above, below, positive=kind == "gamma")]
    ]
    assert least <= sum(held) / repeats <= 0.97


@pytest.mark.parametrize(("name", "baseline"), [("opd", False), ("vopd", True)])
def test_the_noise_of_a_batch_is_the_enumerated_one_and_its_mean_the_exact_gradient(models, pair, name, baseline):
    """One gradient over contexts of different lengths, padded together: the mean is over their seven tokens."""
    noise = gradient_noise(*pair, ROLLOUTS, estimators=[name], resamples=600, seed=3)[name]
    tokens = sum(len(rollout.completion_ids) for rollout in ROLLOUTS)
    expected = sum(token_variance(models, rollout, baseline, tokens) for rollout in ROLLOUTS)
    assert noise.variance == pytest.approx(expected, rel=0.1)
    exact = sum(exact_gradient(models, rollout) for rollout in ROLLOUTS) * LENGTH / tokens
    assert noise.squared_norm == pytest.approx(float(exact.square().sum()), rel=1e-4)
    assert abs(noise.squared_bias) < 0.01 * noise.squared_norm


def test_the_exact_objective_has_no_noise_and_the_optimal_baseline_less_than_none(pair):
    names = ["opd", "vopd_optimal", "full_rkl", "top_k_rkl"]
    noise = gradient_noise(*pair, ROLLOUTS, estimators=names, top_k=2, resamples=64)
    assert noise["full_rkl"].variance == 0
    assert noise["full_rkl"].squared_bias == 0
    assert 0 < noise["vopd_optimal"].variance < noise["opd"].variance
    # The same gradient at every redraw, far from the exact one; computed once, so without the rounding of a difference.
    assert noise["top_k_rkl"].variance == 0
    assert noise["top_k_rkl"].squared_bias > 1e-3 * noise["top_k_rkl"].squared_norm


def test_the_noise_of_a_batch_needs_two_resamples(pair):
    with pytest.raises(ConfigurationError, match="at least 2"):
        gradient_noise(*pair, ROLLOUTS, estimators=["opd"], resamples=1)


@pytest.mark.parametrize(
    ("rollouts", "resamples", "fact"),
    [
        (ROLLOUTS[:1], 4, "rollouts"),
        ([], 4, "rollouts"),
        (ROLLOUTS, 1, "resamples"),
        ([Rollout([1], [])] * 2, 4, "token"),
    ],
)
def test_too_little_to_measure_is_refused(pair, rollouts, resamples, fact):
    with pytest.raises(ConfigurationError, match=fact):
        decompose_variance(*pair, rollouts, estimators=["opd"], resamples=resamples)

"""Gradient noise against exact enumeration on a model small enough to enumerate."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from vopd.experiments.gradient_noise import gradient_noise

VOCAB = 4


def tiny(seed: int, rows: int) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=rows, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=False, initializer_range=0.8,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def case():
    student, teacher = tiny(0, VOCAB), tiny(1, VOCAB + 2)
    input_ids = torch.tensor([[0, 1, 2, 3], [0, 0, 3, 1]])
    attention = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    completion = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1]])
    return student, teacher, input_ids, attention, completion


def enumerated(student, teacher, input_ids, attention, completion, baseline):
    """Trace of the covariance of the mean token gradient: the tokens are drawn independently, so it is a sum."""
    positions = (attention.cumsum(-1) - 1).clamp_min(0)
    options = {"input_ids": input_ids, "attention_mask": attention, "position_ids": positions}
    rows = completion[:, 1:].bool()
    logprobs = student(**options).logits[:, :-1][rows].log_softmax(-1)
    with torch.no_grad():
        other = teacher(**options).logits[:, :-1, :VOCAB][rows].log_softmax(-1)
    parameters = list(student.parameters())
    total = 0.0
    for own, target in zip(logprobs, other):
        probs, rewards = own.detach().exp(), target - own.detach()
        value = (probs * rewards).sum() if baseline == "value" else 0.0
        gradients = []
        for token in range(VOCAB):
            parts = torch.autograd.grad(own[token], parameters, retain_graph=True, allow_unused=True)
            score = torch.cat([p.flatten() for p in parts if p is not None])
            gradients.append(-(rewards[token] - value) * score / len(logprobs))
        stacked = torch.stack(gradients)
        total += float(probs @ (stacked - probs @ stacked).square().sum(-1))
    return total


@pytest.mark.parametrize(("estimator", "baseline"), [("opd", "none"), ("vopd", "value")])
def test_variance_is_the_enumerated_one_and_the_mean_is_the_exact_gradient(case, estimator, baseline):
    noise = gradient_noise(*case, estimators=[estimator], resamples=1500, seed=3)[estimator]
    assert noise.variance == pytest.approx(enumerated(*case, baseline), rel=0.1)
    assert abs(noise.squared_bias) < 0.01 * noise.squared_norm


def test_the_exact_objective_has_no_noise_and_the_optimal_baseline_less_than_none(case):
    names = ["opd", "vopd_optimal", "full_rkl", "top_k_rkl"]
    noise = gradient_noise(*case, estimators=names, top_k={"top_k_rkl": 2}, resamples=64)
    assert noise["full_rkl"].variance == 0
    assert noise["full_rkl"].squared_bias == 0
    assert 0 < noise["vopd_optimal"].variance < noise["opd"].variance
    # The same gradient at every redraw, far from the exact one: what is left is float32 rounding of equal squares.
    assert noise["top_k_rkl"].variance < 1e-6 * noise["top_k_rkl"].squared_bias
    assert noise["top_k_rkl"].squared_bias > 1e-3 * noise["top_k_rkl"].squared_norm


def test_a_single_resample_is_refused(case):
    with pytest.raises(ValueError, match="at least 2"):
        gradient_noise(*case, estimators=["opd"], resamples=1)

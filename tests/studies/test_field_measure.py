"""What the study of the field's losses measures, on contexts whose parameters are the logits themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from studies.claims import design
from studies.field.batch_means import batch_gradient, batch_variances, batches
from studies.field.contexts import Context, contexts_of
from studies.field.forms import FORMS
from studies.field.measure import (
    RESULTS,
    Expected,
    enumerated,
    expectations,
    masses,
    noise_of,
    per_signal,
    texts,
)
from vopd.experiments.rollouts import Rollout
from vopd.functional import gradient_variance, moments
from vopd.models import load_model

BY_NAME = {form.name: form for form in FORMS}
DIVISOR = 2.0


@pytest.fixture(scope="module")
def contexts() -> list[Context]:
    generator = torch.Generator().manual_seed(0)

    def context(tokens: int) -> Context:
        logits, teacher = (torch.randn(tokens, 5, generator=generator) for _ in range(2))
        parameter = logits.requires_grad_()
        return Context(parameter * 1, teacher, [parameter], DIVISOR)

    return [context(3), context(3)]


def exact(context: Context) -> Tensor:
    """E g_m: the gradient of the exact reverse KL over the divisor, by autograd."""
    own = context.logits.detach().requires_grad_()
    logprobs = own.log_softmax(-1)
    (logprobs.exp() * (logprobs - context.teacher_logits.log_softmax(-1))).sum().backward()
    assert own.grad is not None
    return own.grad / DIVISOR


def test_expectations_are_those_of_autograd(contexts: list[Context]) -> None:
    forms = [BY_NAME[name] for name in ("opd", "power", "bounded", "bounded_value", "fixed_negative")]
    forms.append(replace(BY_NAME["power"], like="bounded", label="another"))
    found, variances = expectations(contexts, forms, draws=2)
    signal = torch.stack([exact(context).square().sum() for context in contexts]).double()
    torch.testing.assert_close(found["opd"].signal, signal)
    assert float(found["opd"].off.max()) < 1e-9 and found["opd"].cosine == pytest.approx(1)
    power = []
    for context in contexts:
        own, other = context.logits.detach().softmax(-1), context.teacher_logits.softmax(-1)
        mean = (own * (other - own)).sum(-1, keepdim=True)
        power.append(-own * (other - own - mean) / DIVISOR)
    off = torch.stack([(mine - exact(c)).square().sum() for mine, c in zip(power, contexts, strict=True)]).double()
    torch.testing.assert_close(found["power"].off, off)
    assert float(found["bounded_value"].off_like.max()) < 1e-9 < float(found["bounded_value"].off.min())
    assert set(variances) == set(found)
    assert float(found["another"].off_like.min()) > 1e-4
    assert float(found["fixed_negative"].signal.max()) < 1e-9


def closed_form(context: Context) -> float:
    """Var g_m of opd where the parameters are the logits."""
    variance = gradient_variance(moments(context.logits.detach(), context.teacher_logits), torch.zeros(3))
    return float(variance.sum()) / DIVISOR**2


def test_variances_in_the_logits_are_the_closed_form(contexts: list[Context]) -> None:
    found = noise_of(BY_NAME["opd"], contexts, draws=2)
    assert found.variance.tolist() == pytest.approx([closed_form(context) for context in contexts], rel=1e-5)
    assert found.logit_variance == pytest.approx(DIVISOR**2 * float(found.variance.mean()) / 3, rel=1e-5)
    without_noise = noise_of(replace(BY_NAME["without_tail"], top_k=2), contexts, draws=2)
    assert not without_noise.variance.any()


def test_variances_in_parameters_that_tokens_share() -> None:
    """Logits that are linear in three parameters: sum over tokens of E |J (g - E g)|^2, by enumeration."""
    generator = torch.Generator().manual_seed(0)
    jacobian, teacher = torch.randn(4, 5, 3, generator=generator), torch.randn(4, 5, generator=generator)
    parameter = torch.randn(3, generator=generator).requires_grad_()
    context = Context(jacobian @ parameter, teacher, [parameter], DIVISOR)
    logits = context.logits.detach()
    own, probs = logits.log_softmax(-1), logits.softmax(-1)
    gradients = (teacher.log_softmax(-1) - own).unsqueeze(-1) * (probs.unsqueeze(1) - torch.eye(5))
    carried = torch.einsum("nyv,nvj->nyj", gradients, jacobian) / DIVISOR
    mean = torch.einsum("ny,nyj->nj", probs, carried)
    expected = float((probs * (carried - mean.unsqueeze(1)).square().sum(-1)).sum())
    found = noise_of(BY_NAME["opd"], [context], draws=3000)
    torch.testing.assert_close(found.mean[0], mean.sum(0))
    assert float(found.variance) == pytest.approx(expected, rel=0.05)


def test_one_token_is_drawn_by_its_share_of_the_variance() -> None:
    """Two of three tokens are never drawn from p, and make up nearly all of the variance."""
    logits, teacher = torch.tensor([[0.0, -12.0, -12.0]]), torch.tensor([[0.0, -2000.0, -1000.0]])
    context = Context(logits, teacher, [], 1.0)
    _, directions = enumerated(BY_NAME["opd"], context, 200, torch.Generator().manual_seed(0))
    drawn, lengths = directions[:, 0].abs(), directions.square().sum(-1)
    # E |g|^2 is r^2 times about 2: the one of twice the reward has four fifths of it.
    assert float((drawn[:, 1] > drawn[:, 2]).double().mean()) == pytest.approx(0.8, abs=0.07)
    assert float(lengths.std()) < 1e-3 * float(lengths.mean())


def test_variances_of_batches_drawn_again_are_the_closed_form(contexts: list[Context]) -> None:
    expected = [closed_form(context) for context in contexts]
    own, whole = batch_variances(contexts, BY_NAME["opd"], resamples=400, seed=0)
    assert own.tolist() == pytest.approx(expected, rel=0.12)
    assert whole == pytest.approx(sum(expected) / 2, rel=0.12)  # without a mean of the batch contexts are independent


def test_the_second_pass_subtracts_the_mean_of_the_first(contexts: list[Context]) -> None:
    logits = torch.cat([context.logits.detach() for context in contexts])
    teacher = torch.cat([context.teacher_logits for context in contexts])
    tokens, completion = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([0, 0, 0, 1, 1, 1])
    rewards = (teacher.log_softmax(-1) - logits.log_softmax(-1)).gather(1, tokens[:, None])[:, 0]
    means = {
        "opd_global_mean": rewards.mean().expand(6),
        "opd_other_tokens": torch.stack([rewards[torch.arange(6) != at].mean() for at in range(6)]),
        "opd_other_completions": rewards.view(2, 3).mean(1).flip(0).repeat_interleave(3),
    }
    directions = logits.softmax(-1) - torch.eye(5)[tokens]
    for name, mean in means.items():
        found = batch_gradient(BY_NAME[name], logits, teacher, tokens, completion)
        torch.testing.assert_close(found, (rewards - mean)[:, None] * directions)


def test_a_form_that_is_scaled_is_off_by_the_rest() -> None:
    signal = torch.tensor([4.0, 9.0]).double()
    form = Expected(signal, signal, signal, torch.zeros(2).double(), 1.0).times(torch.tensor([0.5, 0.9]).double())
    torch.testing.assert_close(form.signal, torch.tensor([1.0, 7.29]).double())
    torch.testing.assert_close(form.off, torch.tensor([1.0, 0.09]).double())
    torch.testing.assert_close(form.off_like, form.off)


def test_noise_per_signal_does_not_change_with_the_scale() -> None:
    noise, signal, other = (torch.rand(9, generator=torch.Generator().manual_seed(s)) + 0.5 for s in range(3))
    found = per_signal(noise, signal, other, signal)
    assert found.value == pytest.approx(float(noise.mean() / other.mean())) and found.low < found.value < found.high
    scaled = per_signal(9 * noise, 9 * signal, other, signal)
    assert (scaled.value, scaled.low, scaled.high) == pytest.approx((found.value, found.low, found.high))
    same = per_signal(noise, signal, noise, signal)
    assert (same.value, same.low, same.high) == pytest.approx((1, 1, 1))


def test_a_rollout_s_logits_are_those_that_predict_its_completion(
    tiny_student_dir: Path, tiny_teacher_dir: Path
) -> None:
    student, teacher = load_model(tiny_student_dir), load_model(tiny_teacher_dir).requires_grad_(False)
    rollouts = [Rollout([5, 6], [7, 8, 9]), Rollout([6], [8])]
    place = SimpleNamespace(student=student, teacher=teacher, rollouts=rollouts, vocabulary=300)
    first, second = contexts_of(cast(Any, place))
    with torch.no_grad():
        for model, found in ((student, first.logits), (teacher, first.teacher_logits)):
            torch.testing.assert_close(found, model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits[0, 1:4, :300])
    assert (len(second.logits), first.divisor, second.divisor) == (1, 2.0, 2.0)
    assert len(first.carried(torch.ones_like(first.logits))) == sum(p.numel() for p in student.parameters())


def test_the_student_s_mass_in_a_top_20() -> None:
    teacher = torch.arange(30.0).unsqueeze(0)  # its top 20 are the last 20 tokens
    context = Context((torch.arange(30) < 15).double().log()[None].clamp_min(-50), teacher, [], 1.0)
    found = masses([context])
    assert (found["teacher"], found["student"]) == pytest.approx((5 / 15, 1))


def test_only_whole_batches_are_used(contexts: list[Context]) -> None:
    assert [len(batch) for batch in batches(contexts * 3, 4)] == [4]


def test_the_committed_results_are_of_these_forms() -> None:
    found = json.loads(RESULTS.read_text())
    assert found["texts"] == texts(), "run: python -m studies.field.measure"
    assert set(found["settings"]) == set(found["facts"]) == set(design.settings())
    for setting in found["settings"].values():
        assert set(setting["forms"]) == set(BY_NAME)
        for name, entry in setting["forms"].items():
            if BY_NAME[name].batch_mean is None:
                assert (entry["relative_bias"]["value"] < 1e-9) == BY_NAME[name].estimator.unbiased, name
            assert entry.get("bias_against_like", {"value": 0})["value"] < 1e-5, name

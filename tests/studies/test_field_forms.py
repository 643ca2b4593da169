"""The field's losses against their formulas, by autograd and by enumeration, in float64 on seven tokens."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import vopd
from enumeration import exact_gradient, expectation, outcomes
from studies.field.batch_means import batch_gradient
from studies.field.forms import FORMS, WHOLE_VOCABULARY, Form

VOCABULARY, FEW = 7, 3
BY_NAME = {form.name: form for form in FORMS}
SINGLE = [form for form in FORMS if form.batch_mean is None]


def logits(seed: int, *shape: int) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=[0, 1, 2])
def pair(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    return logits(request.param, VOCABULARY), logits(10 + request.param, VOCABULARY)


def each_token(form: Form, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, vopd.DistillationOutput]:
    """The gradient for every token that could have been sampled, (V, V), with a top k of 3 where it has one."""
    k = {None: None, WHOLE_VOCABULARY: VOCABULARY}.get(form.top_k, FEW)
    return outcomes(*pair, form.estimator, top_k=k)


def gradient_of(loss: Callable[[Tensor], Tensor], student: Tensor) -> Tensor:
    """By autograd; the loss takes log p, (V,)."""
    own = student.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(own.log_softmax(-1)), own)
    return found


REWARDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sign": lambda p, q: torch.where(q > p, 1.0, -1.0),
    "fixed_negative": lambda p, q: -torch.ones_like(p),
    "bounded": lambda p, q: (0.2 * q / p + 0.8).log(),
    "floored": lambda p, q: torch.maximum((q / p).log(), torch.full_like(p, 0.2).log() / 0.8),
    "power": lambda p, q: q - p,
}


@pytest.mark.parametrize("form", SINGLE, ids=lambda form: form.name)
def test_the_expected_gradient_is_that_of_the_form_it_agrees_with(form: Form, pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair
    found = expectation(student, each_token(form, pair)[0])
    if form.like == "full_rkl":
        assert form.estimator.unbiased
        return torch.testing.assert_close(found, exact_gradient(student, teacher), atol=1e-10, rtol=0)
    assert not form.estimator.unbiased
    assert float((found - exact_gradient(student, teacher)).norm()) > 1e-3
    if form.like in REWARDS:
        p, q = student.softmax(-1), teacher.softmax(-1)
        rewards = REWARDS[form.like](p, q)
        expected = gradient_of(lambda own: -(own.exp() * rewards).sum(), student)
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def generalized_kl(own: Tensor, teacher: Tensor, tokens: Tensor) -> Tensor:
    """sum of p log(p / q) - p + q over some tokens."""
    other = teacher.log_softmax(-1)
    return (own.exp() * (own - other) - own.exp() + other.exp())[tokens].sum()


def test_the_bias_without_the_tail_is_the_tail_left_out(pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair
    inside, outside = teacher.topk(VOCABULARY).indices.split([FEW, VOCABULARY - FEW])
    gradients, output = each_token(BY_NAME["without_tail"], pair)
    expected = gradient_of(lambda own: generalized_kl(own, teacher, inside), student)
    torch.testing.assert_close(gradients, expected.expand_as(gradients), atol=1e-12, rtol=0)
    mean_loss = output.loss / VOCABULARY
    torch.testing.assert_close(mean_loss, generalized_kl(student.log_softmax(-1), teacher, inside))
    left_out = gradient_of(lambda own: generalized_kl(own, teacher, outside), student)
    torch.testing.assert_close(exact_gradient(student, teacher) - expected, left_out, atol=1e-12, rtol=0)


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_plus_one_is_the_derivative_of_the_support_and_a_sampled_tail(which: str, pair: tuple[Tensor, Tensor]) -> None:
    """sum_S p log(p / q) by autograd, and for y outside S the sampled (log p(y) / q(y) + 1) log p(y)."""
    student, teacher = pair
    support = (student if which == "student" else teacher).topk(FEW).indices
    gradients, _ = each_token(BY_NAME[f"plus_one_{which}"], pair)
    other = teacher.log_softmax(-1)
    for token in range(VOCABULARY):

        def loss(own: Tensor, token: int = token) -> Tensor:
            exact = (own.exp() * (own - other))[support].sum()
            tail = ((own - other).detach() + 1)[token] * own[token]
            return exact if token in support else exact + tail

        torch.testing.assert_close(gradients[token], gradient_of(loss, student), atol=1e-12, rtol=0)


def test_baselines_of_the_bounded_reward(pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair
    p = student.softmax(-1)
    rewards = REWARDS["bounded"](p, teacher.softmax(-1))
    weights = 1 - 2 * p + p.square().sum()
    values = {
        "bounded": torch.zeros(()).double(),
        "bounded_value": (p * rewards).sum(),
        "bounded_optimal": (p * weights * rewards).sum() / (p * weights).sum(),
    }
    variances = {}
    for name, value in values.items():
        gradients, output = each_token(BY_NAME[name], pair)
        assert output.baseline is not None
        torch.testing.assert_close(output.baseline, value.expand(VOCABULARY), atol=1e-12, rtol=0)
        variances[name] = float(expectation(student, (gradients - expectation(student, gradients)).square().sum(-1)))
    assert variances["bounded_optimal"] < min(variances["bounded"], variances["bounded_value"])


# ---- means of the batch: every batch of two completions of two tokens, of two tokens each ----------------------


class Chain:
    """Two completions of two tokens; the second token's logits follow the first one, or do not."""

    def __init__(self, dependent: bool) -> None:
        self.first, self.teacher_first = logits(3, 2), logits(4, 2)
        self.second, self.teacher_second = logits(5, 2, 2), logits(6, 2, 2)
        if not dependent:
            self.second, self.teacher_second = (x[:1].expand(2, 2) for x in (self.second, self.teacher_second))

    def expected(self, form: Form) -> Tensor:
        """Gradient in first and second, (3, 2), over all 16 batches by their probability."""
        total, completion = torch.zeros(3, 2).double(), torch.tensor([0, 0, 1, 1])
        for batch in itertools.product(range(2), repeat=4):
            tokens = torch.tensor(batch)
            own, other = (
                torch.stack([first, second[batch[0]], first, second[batch[2]]])
                for first, second in ((self.first, self.second), (self.teacher_first, self.teacher_second))
            )
            chance = own.softmax(-1).gather(1, tokens[:, None]).prod()
            places = torch.tensor([0, 1 + batch[0], 0, 1 + batch[2]])
            total.index_add_(0, places, chance * batch_gradient(form, own, other, tokens, completion))
        return total

    def exact(self) -> tuple[Tensor, Tensor]:
        """(3, 2): the gradient of reverse KL with prefixes fixed, and that of the second token's reward through the
        first token, which no loss here should hold."""
        first, second = self.first.clone().requires_grad_(), self.second.clone().requires_grad_()
        kl = [
            (own.softmax(-1) * (own.log_softmax(-1) - other.log_softmax(-1))).sum(-1)
            for own, other in ((first, self.teacher_first), (second, self.teacher_second))
        ]
        chances = first.softmax(-1)
        losses = (2 * (kl[0] + chances.detach() @ kl[1]), -2 * chances @ kl[1].detach())
        found = [
            torch.autograd.grad(loss, (first, second), retain_graph=True, allow_unused=True, materialize_grads=True)
            for loss in losses
        ]
        kept, through = (torch.cat([one[None], two]) for one, two in found)
        return kept, through


@pytest.mark.parametrize("dependent", [False, True])
def test_what_a_mean_of_the_batch_does_to_the_expected_gradient(dependent: bool) -> None:
    chain, count = Chain(dependent), 4
    exact, through = chain.exact()
    assert (float(through.norm()) > 0.1) == dependent
    expected = {
        "opd": exact,
        "opd_other_completions": exact,
        "opd_other_tokens": exact + through / (count - 1),
        "opd_global_mean": (1 - 1 / count) * exact + through / count,
    }
    for name, value in expected.items():
        torch.testing.assert_close(chain.expected(BY_NAME[name]), value, atol=1e-10, rtol=0)

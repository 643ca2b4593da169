"""Where the variance of a gradient comes from: from drawing the tokens, or from the contexts they are drawn in.

One context m is one rollout. Its gradient under an estimator, with the contexts' mean length N as divisor, is
g_m = (1 / N) sum_t (gradient of the token loss at t), so that the gradient of a batch is the mean of its g_m. With
every prefix held fixed and every token redrawn, e_m = E[g_m | context m] is the gradient of ``full_rkl`` for every
unbiased estimator. Then:

- token part    = mean over m of Var[g_m | context m]   (what a baseline can change),
- context part  = Var over m of e_m                     (what only more rollouts can change),
- total         = Var over m of g_m(own tokens)         (fresh rollouts, each with the tokens that made its prefixes).

The total is not exactly the sum of the two parts: in a rollout a token also decides the prefixes after it, and so
correlates with their gradients. A variance is the trace of a covariance in all trained parameters. A batch of B
rollouts has 1/B of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vopd.errors import ConfigurationError
from vopd.estimators import ESTIMATORS, linear_distillation_loss
from vopd.models import read_head
from vopd.statistics import positive_t_interval, t_interval

from .gradient_noise import _contexts, _gradient, _redraw, shared_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Rollout:
    """A prompt and the completion that the student sampled after it, both at least one token."""

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval over contexts: Student's t, on the log scale for variances.

    A bootstrap over 16 contexts would hold the true value less often than it says.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class EstimatorNoise:
    """One estimator at fixed parameters.

    Attributes:
        token: E_m Var[g_m | m], with the unbiased variance over the redraws.
        total: sample variance of g_m over the rollouts with their own tokens.
        relative_bias: E_m |E[g_m | m] - e_m|^2 / E_m |e_m|^2, the noise of the mean over the redraws taken off; about
            0 (and as often below it) for an unbiased estimator.
        signal_to_noise: E_m |e_m|^2 / token. Infinite, and given as None, where there is no noise.
        cosine: mean over contexts and redraws of cos(g_m, e_m).
        token_by_context: Var[g_m | m] of every context: all estimators see the same, so that ratios can be paired.
    """

    token: Estimate
    total: Estimate
    relative_bias: Estimate
    signal_to_noise: Estimate | None
    cosine: Estimate
    token_by_context: list[float]

    def relative_to(self, other: EstimatorNoise) -> Estimate:
        """Token part as a multiple of another estimator's at the same contexts; the interval is paired by context."""
        return ratio_of_means(torch.tensor(self.token_by_context), torch.tensor(other.token_by_context), positive=True)


@dataclass(frozen=True)
class Decomposition:
    """What `decompose_variance` returns. `context` is Var_m e_m: the same for every unbiased estimator."""

    context: Estimate
    estimators: dict[str, EstimatorNoise]


def decompose_variance(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    rollouts: Sequence[Rollout],
    *,
    estimators: Sequence[str],
    top_k: int | None = None,
    resamples: int = 64,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    seed: int = 0,
    tick: Callable[[str, int], None] = lambda name, context: None,
) -> Decomposition:
    """Measures the token part, the context part and the total of each estimator's gradient variance.

    Every estimator sees the same redraws. Gradients are in all parameters of the student that require one (all, or its
    LoRA adapters) and are summed as they come: the memory is that of a few gradients, whatever the numbers.

    Args:
        student, teacher: causal language models whose heads ``read_head`` can read, in evaluation mode.
        rollouts: M contexts, at least 2, sampled from the student at `temperature`.
        estimators: names in ``vopd.ESTIMATORS``.
        top_k: k of those that have one.
        resamples: R redraws of every token, at least 2.
        vocab_size: the common real vocabulary.
        seed: of the redraws.
        tick: told the estimator and the context that was just measured.

    Raises:
        ConfigurationError: fewer than 2 rollouts or resamples, or a rollout without tokens.

    Source: the law of total variance, for e_m and the redraws.
    """
    if len(rollouts) < 2 or resamples < 2:
        raise ConfigurationError("a variance needs at least 2 contexts and 2 resamples")
    if not all(len(rollout.prompt_ids) and len(rollout.completion_ids) for rollout in rollouts):
        raise ConfigurationError("every context needs a prompt and a completion of at least one token")
    setting = _Setting(student, teacher, rollouts, top_k, resamples, temperature, vocab_size, seed)
    exact = _spread(setting, lambda place: place.gradient("full_rkl", place.own))
    found = {}
    for name in estimators:
        rows = []
        for place in setting.places():
            rows.append(_within(place, name))
            tick(name, len(rows))
        found[name] = _summary(torch.tensor(rows, dtype=torch.float64), _spread(setting, _own_gradient(name)))
    return Decomposition(_variance(exact), found)


def _own_gradient(name: str) -> Callable[[_Place], Tensor]:
    return lambda place: place.gradient(name, place.own)


@dataclass(frozen=True)
class _Setting:
    student: PreTrainedModel
    teacher: PreTrainedModel
    rollouts: Sequence[Rollout]
    top_k: int | None
    resamples: int
    temperature: float
    vocab_size: int | None
    seed: int

    def places(self) -> Iterator[_Place]:
        """One context at a time: its hidden states with their graph, and what was and would be drawn there."""
        mean_length = sum(len(rollout.completion_ids) for rollout in self.rollouts) / len(self.rollouts)
        return (_Place(self, rollout, index, mean_length) for index, rollout in enumerate(self.rollouts))


class _Place:
    """A context that gradients are taken in."""

    def __init__(self, setting: _Setting, rollout: Rollout, index: int, mean_length: float) -> None:
        self.setting = setting
        self.mean_length = mean_length
        device = read_head(setting.student, "student").weight.device
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]], device=device)
        mask = torch.zeros_like(ids)
        mask[:, len(rollout.prompt_ids) :] = 1
        self.contexts = _contexts(setting.student, setting.teacher, ids, torch.ones_like(ids), mask)
        self.own = torch.tensor(rollout.completion_ids, device=device)
        self.vocab = setting.vocab_size or shared_rows(setting.student, setting.teacher)
        self.index = index

    def redraws(self) -> Tensor:
        setting = self.setting
        hidden, head = self.contexts.student_hidden.detach(), read_head(setting.student, "student")
        return _redraw(hidden, head, self.vocab, setting.resamples, setting.temperature, setting.seed + self.index)

    def gradient(self, name: str, ids: Tensor) -> Tensor:
        setting = self.setting
        parameters = [parameter for parameter in setting.student.parameters() if parameter.requires_grad]
        return _gradient(
            setting.student, setting.teacher, parameters, self.contexts, ids,
            estimator=name, top_k=setting.top_k if ESTIMATORS[name].needs_top_k else None, vocab_size=self.vocab,
            temperature=setting.temperature, normalizer=self.mean_length,
        )  # fmt: skip


def _within(place: _Place, name: str) -> tuple[float, float, float, float]:
    """Of one context: variance over the redraws, |bias|^2, |e|^2 and the mean cosine to e."""
    exact = place.gradient("full_rkl", place.own)
    norm = float(exact.norm())
    count, deviations, squares, cosine = 0, torch.zeros_like(exact), 0.0, 0.0
    for ids in place.redraws():
        gradient = place.gradient(name, ids)
        cosine += float(gradient @ exact) / max(float(gradient.norm()) * norm, 1e-30)
        gradient -= exact
        deviations += gradient
        squares += float(gradient.square().sum())
        count += 1
    mean_square = float((deviations / count).square().sum())
    variance = max(0.0, (squares - count * mean_square) / (count - 1))
    return variance, mean_square - variance / count, norm**2, cosine / count


def _spread(setting: _Setting, gradient: Callable[[_Place], Tensor]) -> Tensor:
    """|gradient - mean gradient|^2 of every context, scaled so that the mean is the sample variance; two passes."""
    mean: Tensor | float = 0.0
    for place in setting.places():
        mean = mean + gradient(place) / len(setting.rollouts)
    squares = [float((gradient(place) - mean).square().sum()) for place in setting.places()]
    return torch.tensor(squares, dtype=torch.float64) * len(squares) / (len(squares) - 1)


def _summary(rows: Tensor, spread: Tensor) -> EstimatorNoise:
    variance, bias, signal, cosine = rows.unbind(1)
    noisy = float(variance.mean()) > 1e-9 * float(signal.mean())
    return EstimatorNoise(
        _variance(variance),
        _variance(spread),
        ratio_of_means(bias, signal),
        ratio_of_means(signal, variance, positive=True) if noisy else None,
        Estimate(float(cosine.mean()), *t_interval(cosine)),
        variance.tolist(),
    )


def _variance(values: Tensor) -> Estimate:
    return Estimate(float(values.mean()), *positive_t_interval(values))


def ratio_of_means(above: Tensor, below: Tensor, *, positive: bool = False) -> Estimate:
    """sum(above) / sum(below) with the t interval of its linear form; both are (contexts,), drawn together.

    `positive` takes the interval on the log scale.
    """
    above, below = above.double().cpu(), below.double().cpu()
    mean = below.mean().clamp_min(1e-300)
    value = above.mean() / mean
    linear = value + (above - value * below) / mean
    return Estimate(float(value), *(positive_t_interval(linear) if positive else t_interval(linear)))


@dataclass(frozen=True)
class Bin:
    """Tokens of one range of positions or entropies, with their mean closed-form variances in the logits."""

    low: float
    high: float
    tokens: int
    none: float
    value: float
    optimal: float


@dataclass(frozen=True)
class Profile:
    """Closed-form logit-space variance of one token's gradient, sum_v p_v w_v (r_v - b)^2 - |g|^2, over the rollouts.

    `value_hurts_share` is the share of tokens where b = V has more of it than b = 0.
    """

    value_hurts_share: Estimate
    by_position: list[Bin]
    by_entropy: list[Bin]


@torch.no_grad()
def variance_profile(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    rollouts: Sequence[Rollout],
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    bins: int = 8,
) -> Profile:
    """Where in a completion, and at what entropy of the student (nats), the variance lies; bins of equal counts."""
    setting = _Setting(student, teacher, rollouts, None, 2, temperature, vocab_size, 0)
    columns, hurts, counts = [], [], []
    head, teacher_head = read_head(student, "student"), read_head(teacher, "teacher")
    for place in setting.places():
        output = linear_distillation_loss(
            place.contexts.student_hidden, head.weight, place.contexts.teacher_hidden, teacher_head.weight, place.own,
            estimator="vopd", temperature=temperature, vocab_size=place.vocab, diagnostics=True,
            **head.options("student"), **teacher_head.options("teacher"),
        )  # fmt: skip
        assert output.variance is not None and output.entropy is not None
        positions = torch.arange(1, len(place.own) + 1, device=place.own.device)
        columns.append(torch.stack([positions, output.entropy, *output.variance]).double().cpu())
        hurts.append(float((output.variance.value > output.variance.none).sum()))
        counts.append(float(len(place.own)))
    position, entropy, *variances = torch.cat(columns, dim=1)
    return Profile(
        ratio_of_means(torch.tensor(hurts), torch.tensor(counts)),
        _bins(position, variances, bins),
        _bins(entropy, variances, bins),
    )


def _bins(key: Tensor, variances: Sequence[Tensor], bins: int) -> list[Bin]:
    """Bins of about equal counts; equal keys stay together, so there may be fewer."""
    edges = torch.quantile(key, torch.linspace(0, 1, bins + 1, dtype=torch.float64)).unique()
    which = torch.bucketize(key, edges[1:-1], right=True)
    found = []
    for index in which.unique().tolist():
        inside = which == index
        means = [float(values[inside].mean()) for values in variances]
        found.append(Bin(float(key[inside].min()), float(key[inside].max()), int(inside.sum()), *means))
    return found

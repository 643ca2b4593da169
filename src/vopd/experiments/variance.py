"""Where a gradient's variance comes from: from sampling the tokens, or from the contexts they are sampled in.

One context m is one rollout. Its gradient under an estimator, with the contexts' mean length N as divisor, is
g_m = (1 / N) sum_t (gradient of the token loss at t), so that the gradient of a batch is the mean of its g_m. With
every prefix fixed and every token resampled, e_m = E[g_m | context m] is the gradient of ``full_rkl`` for every
unbiased estimator. Then:

- token part    = mean over m of Var[g_m | context m]   (what a baseline can change),
- context part  = Var over m of e_m                     (what only more rollouts can change),
- total         = Var over m of g_m(own tokens)         (fresh rollouts, each with the tokens that made its prefixes).

The total is not exactly the sum of the two parts: in a rollout a token also determines the prefixes after it, and so
correlates with their gradients. A variance is the trace of a covariance in all trained parameters. A batch of B
rollouts has 1/B of each.

Every value has a 95 % interval over contexts: Student's t, on the log scale for variances. A bootstrap over 16 contexts
would cover the true value less often than 95 %.

`gradient_noise` measures the token part of one batch alone: all its contexts at once, g the gradient of their mean
token loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from vopd.errors import ConfigurationError, check_at_least
from vopd.estimators import DistillationOutput, Estimator, linear_distillation_loss
from vopd.estimators.catalogue import find_estimators
from vopd.estimators.exact import FULL_RKL
from vopd.estimators.policy_gradient import VOPD
from vopd.models import read_head
from vopd.statistics import Interval, positive_t_interval, ratio_of_means, t_interval

from .rollouts import Rollout, pad
from .teacher_states import TeacherStates, predicting

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAMPLING_ROWS = 512


class GradientNoise(NamedTuple):
    """Noise that sampling the tokens adds to a gradient g, for one estimator; contexts are fixed.

    Attributes:
        variance: trace of Cov[g | contexts] in all trained parameters.
        squared_bias: |mean over the resamples of g - exact g|^2 minus what noise alone gives; about 0 if unbiased.
        squared_norm: |E g|^2 of the exact gradient (that of ``full_rkl``) on the same contexts.
        cosine: mean over the resamples of the cosine of g and the exact gradient.
    """

    variance: float
    squared_bias: float
    squared_norm: float
    cosine: float


@dataclass(frozen=True)
class EstimatorNoise:
    """One estimator at fixed parameters.

    Attributes:
        token: E_m Var[g_m | m], with the unbiased variance over the resamples.
        total: sample variance of g_m over the rollouts with their own tokens.
        relative_bias: E_m |E[g_m | m] - e_m|^2 / E_m |e_m|^2, with the noise of the mean over the resamples subtracted;
            about 0 (and as often below it) for an unbiased estimator.
        signal_to_noise: E_m |e_m|^2 / token; None (infinite) without noise.
        cosine: mean over contexts and resamples of cos(g_m, e_m).
        token_by_context: Var[g_m | m] of every context; all estimators see the same contexts, so ratios are paired.
    """

    token: Interval
    total: Interval
    relative_bias: Interval
    signal_to_noise: Interval | None
    cosine: Interval
    token_by_context: list[float]

    def relative_to(self, other: EstimatorNoise) -> Interval:
        """Token part as a multiple of another estimator's at the same contexts; the interval is paired by context."""
        return ratio_of_means(torch.tensor(self.token_by_context), torch.tensor(other.token_by_context), positive=True)


@dataclass(frozen=True)
class Decomposition:
    """What `decompose_variance` returns. `context` is Var_m e_m: the same for every unbiased estimator."""

    context: Interval
    estimators: dict[str, EstimatorNoise]


def gradient_noise(
    student: PreTrainedModel,
    teacher: TeacherStates,
    rollouts: Sequence[Rollout],
    *,
    estimators: Sequence[str | Estimator],
    top_k: int | None = None,
    resamples: int = 32,
    vocab_size: int | None = None,
    seed: int = 0,
) -> dict[str, GradientNoise]:
    """Measures the noise of one batch: every prefix fixed, each token resampled from the student ``resamples`` times.

    g is the gradient of the mean token loss over all rollouts. All estimators see the same resamples. The variance is
    the unbiased sample variance, summed over parameters one resample at a time, in the memory of two gradients.
    ``full_rkl`` does not depend on the token, so its noise is 0. The arguments are those of ``decompose_variance``.

    Raises:
        ConfigurationError: fewer than 2 resamples, or a rollout without tokens.

    Source: the law of total variance; E over contexts of this is the token part of the gradient's variance.
    """
    _check(rollouts, resamples)
    contexts = _Contexts(_Models(student, teacher, top_k, 1.0, vocab_size), rollouts)
    return {chosen.name: contexts.noise(chosen, resamples, seed) for chosen in find_estimators(estimators)}


def decompose_variance(
    student: PreTrainedModel,
    teacher: TeacherStates,
    rollouts: Sequence[Rollout],
    *,
    estimators: Sequence[str | Estimator],
    top_k: int | None = None,
    resamples: int = 64,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    seed: int = 0,
    tick: Callable[[str], None] = lambda name: None,
) -> Decomposition:
    """Measures the token part, the context part and the total of each estimator's gradient variance.

    Every estimator sees the same resamples. Gradients are those of all student parameters that require one (all, or
    its LoRA adapters), summed one at a time: memory for a few gradients, however many contexts and resamples.

    Args:
        student: causal language model whose head ``read_head`` can read, in evaluation mode.
        teacher: what gives the teacher's states: ``local_states(model)``, or ``served_states``.
        rollouts: M contexts, at least 2, sampled from the student at `temperature`.
        estimators: names in ``vopd.ESTIMATORS``, ``module:NAME``, or your own ``Estimator`` objects.
        top_k: k of the top-k estimators.
        resamples: R resamples of every token, at least 2.
        vocab_size: size of the common vocabulary.
        seed: of the resamples.
        tick: called with the name of each estimator once it is measured.

    Raises:
        ConfigurationError: fewer than 2 rollouts or resamples, or a rollout without tokens.

    Source: the law of total variance, for e_m and the resamples.
    """
    check_at_least("the number of rollouts", len(rollouts), 2)
    _check(rollouts, resamples)
    models = _Models(student, teacher, top_k, temperature, vocab_size)
    found = {}
    for chosen in find_estimators(estimators):
        # Every context has its own resamples, the same for all estimators.
        noise = [context.noise(chosen, resamples, own) for own, context in enumerate(_each(models, rollouts), seed)]
        found[chosen.name] = _summary(torch.tensor(noise, dtype=torch.float64), _spread(models, rollouts, chosen))
        tick(chosen.name)
    return Decomposition(_variance(_spread(models, rollouts, FULL_RKL)), found)


def _check(rollouts: Sequence[Rollout], resamples: int) -> None:
    check_at_least("resamples", resamples, 2)
    if not all(len(rollout.prompt_ids) and len(rollout.completion_ids) for rollout in rollouts):
        raise ConfigurationError("every context needs a prompt and a completion of at least one token")


@dataclass(frozen=True)
class _Models:
    """Student and teacher, with the settings of the loss."""

    student: PreTrainedModel
    teacher: TeacherStates
    top_k: int | None
    temperature: float
    vocab_size: int | None


class _Contexts:
    """Rollouts with fixed prefixes: both models' hidden states where completion tokens are predicted.

    Attributes:
        tokens: the rollouts' own tokens there, (N,).
        student_hidden: (N, D_s), with the graph to the student's parameters.
        teacher: hidden (N, D_t), and the head.
        normalizer: divisor of the summed token losses; default: N.
    """

    def __init__(self, models: _Models, rollouts: Sequence[Rollout], normalizer: float | None = None) -> None:
        self.models, self.normalizer = models, normalizer
        self.student_head = read_head(models.student, "student")
        self.teacher = models.teacher(rollouts)
        self.vocab_size = models.vocab_size or min(len(self.student_head.weight), len(self.teacher.head.weight))
        inputs, completion_mask = pad(rollouts, self.student_head.device)
        self.tokens = inputs["input_ids"][:, 1:][completion_mask[:, 1:].bool()]
        self.student_hidden = predicting(models.student, inputs, completion_mask)

    @torch.no_grad()
    def redraws(self, resamples: int, seed: int) -> Tensor:
        """Tokens sampled independently at every position, (R, N)."""
        hidden = self.student_hidden.detach()
        generator = torch.Generator(hidden.device).manual_seed(seed)
        head = self.student_head.map(lambda part: part[: self.vocab_size].float())
        draws = []
        for rows in hidden.split(_SAMPLING_ROWS):
            probs = (head.logits(rows) / self.models.temperature).softmax(-1)
            draws.append(torch.multinomial(probs, resamples, True, generator=generator))
        return torch.cat(draws).T

    def loss(self, estimator: Estimator, tokens: Tensor, *, diagnostics: bool = False) -> DistillationOutput:
        """The loss of an estimator if these tokens had been sampled."""
        return linear_distillation_loss(
            self.student_hidden, self.student_head.weight, self.teacher.hidden, self.teacher.head.weight, tokens,
            **self.student_head.options("student"), **self.teacher.head.options("teacher"), estimator=estimator,
            top_k=self.models.top_k if estimator.needs_top_k else None, vocab_size=self.vocab_size,
            temperature=self.models.temperature, normalizer=self.normalizer, diagnostics=diagnostics,
        )  # fmt: skip

    def gradient(self, estimator: Estimator, tokens: Tensor) -> Tensor:
        """Gradient of that loss in all trained parameters, as one flat vector."""
        parameters = [parameter for parameter in self.models.student.parameters() if parameter.requires_grad]
        loss = self.loss(estimator, tokens).loss
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        return torch.cat([gradient.flatten().float() for gradient in gradients])

    def noise(self, estimator: Estimator, resamples: int, seed: int) -> GradientNoise:
        """Streams over the resamples: sums of the deviations from the exact gradient, their squares and the cosines.

        The exact gradient is the mean of every unbiased estimator's; resamples with the same seed are the same.
        """
        count = resamples if estimator.samples else 1  # without sampled tokens all gradients are the same
        redraws, exact = self.redraws(count, seed), self.gradient(FULL_RKL, self.tokens)
        norm = float(exact.norm())
        deviations, squares, cosine = torch.zeros_like(exact), 0.0, 0.0
        for tokens in redraws:
            gradient = self.gradient(estimator, tokens)
            cosine += float(gradient @ exact) / max(float(gradient.norm()) * norm, 1e-30)
            gradient -= exact
            deviations += gradient
            squares += float(gradient.square().sum())
        mean_square = float((deviations / count).square().sum())
        variance = max(0.0, (squares - count * mean_square) / max(1, count - 1))
        return GradientNoise(variance, mean_square - variance / count, norm**2, cosine / count)


def _each(models: _Models, rollouts: Sequence[Rollout]) -> Iterator[_Contexts]:
    """One context at a time, to save memory. The divisor of each is the mean length of all."""
    mean_length = sum(len(rollout.completion_ids) for rollout in rollouts) / len(rollouts)
    return (_Contexts(models, [rollout], mean_length) for rollout in rollouts)


def _spread(models: _Models, rollouts: Sequence[Rollout], estimator: Estimator) -> Tensor:
    """|g - mean g|^2 of every context's gradient, scaled so that the mean is the sample variance; two passes."""
    mean: Tensor | float = 0.0
    for context in _each(models, rollouts):
        mean = mean + context.gradient(estimator, context.tokens) / len(rollouts)
    squares = [
        float((context.gradient(estimator, context.tokens) - mean).square().sum())
        for context in _each(models, rollouts)
    ]
    return torch.tensor(squares, dtype=torch.float64) * len(squares) / (len(squares) - 1)


def _summary(rows: Tensor, spread: Tensor) -> EstimatorNoise:
    variance, bias, signal, cosine = rows.unbind(1)
    noisy = float(variance.mean()) > 1e-9 * float(signal.mean())
    return EstimatorNoise(
        _variance(variance),
        _variance(spread),
        ratio_of_means(bias, signal),
        ratio_of_means(signal, variance, positive=True) if noisy else None,
        Interval(float(cosine.mean()), *t_interval(cosine)),
        variance.tolist(),
    )


def _variance(values: Tensor) -> Interval:
    return Interval(float(values.mean()), *positive_t_interval(values))


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

    `value_hurts_share` is the share of tokens where b = V has more variance than b = 0.
    """

    value_hurts_share: Interval
    by_position: list[Bin]
    by_entropy: list[Bin]


@torch.no_grad()
def variance_profile(
    student: PreTrainedModel,
    teacher: TeacherStates,
    rollouts: Sequence[Rollout],
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    bins: int = 8,
) -> Profile:
    """The variance by position in the completion and by the student's entropy (nats), in bins of equal counts."""
    models = _Models(student, teacher, None, temperature, vocab_size)
    columns, hurts, counts = [], [], []
    for context in _each(models, rollouts):
        output = context.loss(VOPD, context.tokens, diagnostics=True)
        assert output.variance is not None and output.entropy is not None
        positions = torch.arange(1, len(context.tokens) + 1, device=context.tokens.device)
        columns.append(torch.stack([positions, output.entropy, *output.variance]).double().cpu())
        hurts.append(float((output.variance.value > output.variance.none).sum()))
        counts.append(float(len(context.tokens)))
    position, entropy, *variances = torch.cat(columns, dim=1)
    share = ratio_of_means(torch.tensor(hurts), torch.tensor(counts))
    return Profile(
        Interval(share.value, max(0.0, share.low), min(1.0, share.high)),
        _bins(position, variances, bins),
        _bins(entropy, variances, bins),
    )


def _bins(key: Tensor, variances: Sequence[Tensor], bins: int) -> list[Bin]:
    """Bins of about equal counts; equal keys share a bin, so there may be fewer bins."""
    edges = torch.quantile(key, torch.linspace(0, 1, bins + 1, dtype=torch.float64)).unique()
    which = torch.bucketize(key, edges[1:-1], right=True)
    found = []
    for index in which.unique().tolist():
        inside = which == index
        means = [float(values[inside].mean()) for values in variances]
        found.append(Bin(float(key[inside].min()), float(key[inside].max()), int(inside.sum()), *means))
    return found

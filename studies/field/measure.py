"""Bias and noise of the field's losses at fixed parameters: ``python -m studies.field.measure``.

Writes studies/field/results.json, a setting at a time; a setting that is there already is not measured again.
Deterministic on one machine. All values are at the students' start, with every prefix fixed, for

- g_m, the gradient of one rollout m (a context) with the contexts' mean length as divisor, as in
  vopd.experiments.variance, in all parameters;
- its expectation E g_m, exact: at each token sum_y p_y g(y) over the whole vocabulary, carried back through the model;
- its variance Var g_m, the token part. Most of it may come from tokens that are drawn once in ten thousand times, so
  drawing tokens as often as one can afford misses it. All g(y) being known in the logits, a deviation from the mean is
  drawn at each token in proportion to its share of that token's variance there, with the length of the whole; carried
  back with random signs, its square has Var g_m as its expectation, without rare events.
- noise per signal: mean Var g_m / mean |E g_m|^2. A reward that is made smaller has less variance and as much less
  signal; this ratio does not change with scale.

Two kinds of bias: against the exact gradient of reverse KL, and against the form without the baseline, which a baseline
should leave unchanged.

Means of the batch. Their advantages depend on other tokens, so a sum over one token's vocabulary says nothing. With
prefixes fixed, all tokens are independent, and the expectation follows on paper: leave-one-out changes nothing, a mean
over all N tokens of the batch multiplies it by 1 - 1/N (tests/studies enumerates whole small batches to prove it). In a
rollout the prefixes depend on earlier tokens, and a mean that holds later tokens of the same completion is biased by
their dependence on this one, also over N; that part is proved in the tests and far too small to be seen by sampling.
Their variance is measured by drawing whole batches of 16 rollouts again, as many as train a step: in a first pass the
advantages of all tokens, in a second the gradients with minus the mean as extra advantages. It is compared with the
variance of the same loss without the mean on the same draws, which has the same rare tokens, and that one's is known.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studies.claims import design
from studies.claims.fixed import Place
from studies.claims.run import facts
from studies.claims.samplers import exact_gradient, few, outcomes
from studies.field.batch_means import batch_variances, batches
from studies.field.contexts import Context, contexts_of
from studies.field.forms import FORMS, Form, K, global_mean
from vopd.statistics import Interval, ratio_of_means, t_interval

RESULTS = Path(__file__).parent / "results.json"
SEED = 203  # of problems, rollouts and tokens drawn again: nothing else in this repository uses it
NO_SIGNAL = 1e-9


@dataclass(frozen=True)
class Size:
    """How much is measured; a smaller one tries the machinery out."""

    contexts: int = 48
    draws: int = 16
    resamples: int = 16
    batch: int = design.BATCH


SMALL = Size(contexts=4, draws=2, resamples=2, batch=2)


# ---- expectations and variances, by enumeration -------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """Exact expectations of a form over M contexts, (M,) each unless said otherwise.

    Attributes:
        signal: |E g_m|^2.
        exact: the same of the exact reverse KL, e_m.
        inner: the inner product of E g_m and e_m.
        off_like: |E g_m - that of the form that it should agree with|^2.
        logit_variance: mean variance of one token's gradient in the logits, a number; NaN if unknown.
    """

    signal: Tensor
    exact: Tensor
    inner: Tensor
    off_like: Tensor
    logit_variance: float

    @property
    def off(self) -> Tensor:
        """|E g_m - e_m|^2."""
        return (self.signal - 2 * self.inner + self.exact).clamp_min(0)

    @property
    def cosine(self) -> float:
        """sum over m of the inner products over the product of the norms."""
        return float(self.inner.sum() / (self.signal.sum() * self.exact.sum()).sqrt())

    def times(self, factors: Tensor) -> Expected:
        """Of the form that multiplies every E g_m by a factor, (M,), and should not."""
        off_like = (1 - factors).square() * self.signal
        return Expected(factors.square() * self.signal, self.exact, factors * self.inner, off_like, float("nan"))

    def first(self, count: int) -> Expected:
        """The first contexts alone."""
        signal, exact, inner, off_like = (p[:count] for p in (self.signal, self.exact, self.inner, self.off_like))
        return Expected(signal, exact, inner, off_like, self.logit_variance)


@dataclass(frozen=True)
class Noise:
    """Exact E g_m, (M, parameters), and Var g_m, (M,), of a form; the mean variance of one token in the logits."""

    mean: Tensor
    variance: Tensor
    logit_variance: float


def noise_of(form: Form, contexts: Sequence[Context], draws: int) -> Noise:
    """By enumeration, all but the directions in which the variance is carried back."""
    generator = torch.Generator().manual_seed(SEED)
    means, variances, in_logits = [], [], []
    for context in contexts:
        mean, directions = enumerated(form, context, draws, generator)
        means.append(context.carried(mean))
        squares = [context.carried(drawn).double().square().sum() for drawn in directions]
        variances.append(torch.stack(squares).mean())
        in_logits.append(directions[0].square().sum(-1))
    return Noise(torch.stack(means), torch.stack(variances), float(torch.cat(in_logits).mean()))


def enumerated(form: Form, context: Context, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Over all tokens y: the mean of g(y), (n, V), and (R, n, V) deviations that carry its variance.

    At each token a deviation d(y) = g(y) - mean is drawn with chance p_y |d(y)|^2 / v, where v is the sum of the
    numerators, and scaled to v in squares, with a random sign.
    """
    logits = context.logits.detach()
    means, drawn = [], []
    gradients = outcomes(logits, context.teacher_logits, form.estimator, form.k(logits.shape[-1]))
    for gradient, probs in zip(gradients, few(logits.double().softmax(-1).float()), strict=True):
        mean = torch.einsum("nyv,ny->nv", gradient, probs)
        deviations = gradient - mean.unsqueeze(1)
        squares = deviations.square().sum(-1)
        shares = probs * squares
        variance = shares.sum(-1, keepdim=True)
        ids = torch.multinomial(torch.where(variance > 0, shares, probs), draws, True, generator=generator)
        scale = (variance / squares.gather(1, ids)).nan_to_num(0, 0).sqrt()
        signs = 2 * torch.randint(2, ids.shape, generator=generator) - 1
        directions = deviations[torch.arange(len(ids)).unsqueeze(-1), ids] * (scale * signs).unsqueeze(-1)
        means.append(mean)
        drawn.append(directions * form.estimator.samples)  # otherwise only rounding differs between tokens
    return torch.cat(means), torch.cat(drawn).transpose(0, 1)


def expectations(
    contexts: Sequence[Context], forms: Sequence[Form], draws: int
) -> tuple[dict[str, Expected], dict[str, Tensor]]:
    """Of every form without a mean of the batch, by name, what is expected and Var g_m, (M,).

    A form comes after the one that it should agree with.
    """
    exact = torch.stack([c.carried(exact_gradient(c.logits.detach(), c.teacher_logits)) for c in contexts])
    signal = _inner(exact, exact)
    wanted = {form.like for form in forms if form.like != form.name}
    known = {"full_rkl": exact}  # no more than needed: each holds all parameters for every context
    found, variances = {}, {}
    for form in forms:
        if form.batch_mean is None:
            noise = noise_of(form, contexts, draws)
            if form.name in wanted:
                known[form.name] = noise.mean
            off = noise.mean - known.get(form.like, noise.mean)
            own = _inner(noise.mean, noise.mean)
            found[form.name] = Expected(own, signal, _inner(noise.mean, exact), _inner(off, off), noise.logit_variance)
            variances[form.name] = noise.variance
    return found, variances


def _inner(left: Tensor, right: Tensor) -> Tensor:
    """Row by row, in float64, (M,)."""
    return torch.stack([row.double() @ other.double() for row, other in zip(left, right, strict=True)])


# ---- one setting -------------------------------------------------------------------------------------------------


def per_signal(noise: Tensor, signal: Tensor, other_noise: Tensor, other_signal: Tensor) -> Interval:
    """(mean noise / mean signal) over that of another form at the same contexts, all (M,).

    The interval is Student's t of the linear form, on the log scale, as in ``vopd.statistics.ratio_of_means``.
    """
    parts = [part / part.mean() for part in (noise, signal, other_noise, other_signal)]
    ratio = float(noise.mean() / signal.mean() / (other_noise.mean() / other_signal.mean()))
    low, high = t_interval(parts[0] - parts[1] - parts[2] + parts[3])
    return Interval(ratio, *(torch.tensor([low, high]).exp() * ratio).tolist())


def scaled(interval: Interval, factor: float) -> Interval:
    """The interval of a value times a known factor above 0."""
    return Interval(interval.value * factor, interval.low * factor, interval.high * factor)


def record(form: Form, own: Expected, variance: Interval, noise_per_signal: Interval) -> dict[str, Any]:
    """What is kept of a form; the two intervals are relative to opd."""
    share = float(own.signal.sum() / own.exact.sum())
    found: dict[str, Any] = {
        "variance_over_opd": asdict(variance),
        "relative_bias": asdict(ratio_of_means(own.off, own.exact)),
        "signal_over_exact": share,
        "cosine": own.cosine if share > NO_SIGNAL else None,
        "noise_per_signal_over_opd": asdict(noise_per_signal) if share > NO_SIGNAL else None,
    }
    if form.like not in (form.name, "full_rkl"):
        found["bias_against_like"] = asdict(ratio_of_means(own.off_like, own.signal))
    return found


def single_records(
    forms: Sequence[Form], expected: Mapping[str, Expected], noise: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Of every form without a mean of the batch; the first is opd."""
    opd, vanilla = expected[forms[0].name], noise[forms[0].name]
    found = {}
    for form in forms:
        if form.batch_mean is None:
            own, mine = expected[form.name], noise[form.name]
            variance = ratio = Interval(0.0, 0.0, 0.0)
            if mine.any():
                variance = ratio_of_means(mine, vanilla, positive=True)
                ratio = per_signal(mine, own.signal, vanilla, opd.signal)
            entry = record(form, own, variance, ratio)
            found[form.name] = {**entry, "logit_variance_over_opd": own.logit_variance / opd.logit_variance}
    return found


def batch_records(
    contexts: Sequence[Context], forms: Sequence[Form], expected: Mapping[str, Expected], noise: Mapping[str, Tensor],
    size: Size,
) -> dict[str, Any]:  # fmt: skip
    """Of every form with a mean of the batch: its variance over that of the loss without it, times the known rest."""
    groups = list(batches(contexts, size.batch))
    tokens = [sum(len(context.logits) for context in batch) for batch in groups]
    each = torch.tensor(tokens).double().repeat_interleave(size.batch)
    opd, vanilla = expected[forms[0].name].first(len(each)), noise[forms[0].name][: len(each)]

    @functools.cache
    def drawn(form: Form) -> tuple[Tensor, float]:
        parts = [batch_variances(batch, form, size.resamples, SEED + at) for at, batch in enumerate(groups)]
        return torch.cat([own for own, _ in parts]), sum(whole for _, whole in parts)

    found, bases = {}, {form.name: form for form in forms}
    for form in forms:
        if form.batch_mean is not None:
            (mine, whole), (without, whole_without) = drawn(form), drawn(bases[form.estimator.name])
            factors = 1 - 1 / each if form.batch_mean is global_mean else torch.ones_like(each)
            own = expected[form.estimator.name].first(len(each)).times(factors)
            base = float(noise[form.estimator.name][: len(each)].mean() / vanilla.mean())
            variance = scaled(ratio_of_means(mine, without, positive=True), base)
            found[form.name] = {
                **record(form, own, variance, scaled(variance, float(opd.signal.mean() / own.signal.mean()))),
                "whole_batch_variance_over_opd": whole / whole_without * base, "tokens_in_batches": tokens,
            }  # fmt: skip
    return found


def masses(contexts: Sequence[Context]) -> dict[str, float]:
    """Mean probability that the student gives to the top 20 of either model."""
    probs = torch.cat([context.logits.detach().softmax(-1) for context in contexts])
    teacher = torch.cat([context.teacher_logits for context in contexts])
    return {
        name: float(probs.gather(1, rows.topk(K).indices).sum(-1).mean())
        for name, rows in (("teacher", teacher), ("student", probs))
    }


def measure(place: Place, size: Size, forms: Sequence[Form] = FORMS) -> dict[str, Any]:
    """Everything of one setting; the first form is opd."""
    contexts = contexts_of(place)
    expected, noise = expectations(contexts, forms, size.draws)
    found = single_records(forms, expected, noise) | batch_records(contexts, forms, expected, noise, size)
    return {
        "tokens": sum(len(context.logits) for context in contexts),
        "vocabulary": place.vocabulary,
        "student_mass_in_top_20": masses(contexts),
        "forms": {form.name: found[form.name] for form in forms},
    }


def texts() -> dict[str, dict[str, str]]:
    """What the table says of each form beside its numbers, in the table's order."""
    return {
        form.name: {"where": form.where, "runs": form.runs, "terms": form.terms, "instead": form.instead,
                    "note": form.note, "like": form.like}
        for form in FORMS
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size = SMALL if arguments.small else Size()
    found: dict[str, Any] = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    found = {"texts": texts(), "size": asdict(size), "settings": {}, "facts": {}} | found | {"texts": texts()}
    for name, setting in design.settings().items():
        if name not in found["settings"]:
            found["facts"][name] = facts()
            problems = setting.held_out(size.contexts, SEED)
            found["settings"][name] = measure(Place(setting, setting.student, problems, SEED), size)
            print(f"{name}: measured", flush=True)
        arguments.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

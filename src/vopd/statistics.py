"""Benchmark scores with confidence intervals, bootstrap over problems, and paired tests.

Intervals resample problems, never samples: the samples of one problem are not independent, so an interval over samples
would be far too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vopd.errors import ConfigurationError, DataError, counted, require

DRAWS = 10_000
SEED = 0
LEVEL = 0.95
# Resampling runs in blocks of about this many indices, so that memory does not grow with the number of problems.
_BLOCK = 2_000_000


@dataclass(frozen=True)
class Interval:
    """A measured value with its 95 % interval over problems."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Score(Interval):
    """A mean over problems with its 95 % interval: fractions between 0 and 1, printed as percentages."""

    count: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class Difference(Interval):
    """Mean of a - b over the same problems, with its 95 % interval and the p-value of "no difference"."""

    p_value: float

    def __str__(self) -> str:
        points = f"{100 * self.value:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        return f"{points}, p = {self.p_value:.2g}"


def bootstrap_interval(values: Any) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `values`, (problems,), resampling problems with replacement.

    The same values always give the same interval. A single problem, or equal values, give an interval of width 0: this
    means that no variation was observed, not that the value is certain.
    """
    data = _vector(values)
    count, means = data.numel(), []
    generator = torch.Generator().manual_seed(SEED)
    for size in _block_sizes(count):
        chosen = torch.randint(count, (size, count), generator=generator)
        means.append(data[chosen].mean(dim=1))
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(torch.cat(means), torch.tensor([tail, 1 - tail], dtype=data.dtype)).tolist()
    return low, high


def t_quantile(degrees: int, level: float = LEVEL) -> float:
    """t such that a Student t variable with `degrees` degrees of freedom lies in [-t, t] with probability `level`.

    Raises:
        ConfigurationError: fewer than 1 degree of freedom.
        MissingExtraError: SciPy is not installed.
    """
    if degrees < 1:
        raise ConfigurationError(f"a t interval needs at least two values, got {degrees + 1}")
    return float(require("scipy.stats", "train").t.isf((1 - level) / 2, degrees))


def t_interval(values: Any) -> tuple[float, float]:
    """Student's t interval of the mean of `values`, (n,): for few values, where a bootstrap interval is too narrow."""
    mean, half = _mean_and_half_width(values)
    return mean - half, mean + half


def positive_t_interval(values: Any) -> tuple[float, float]:
    """Student's t interval on the log scale, for the mean of few skewed values that cannot be negative (variances).

    The bounds are ``mean * exp(-+ t s / (mean sqrt(n)))``. Its coverage is closer to 95 % than that of ``t_interval``
    where a few values make up most of the mean. For a mean of 0 or below it returns ``t_interval``.
    """
    mean, half = _mean_and_half_width(values)
    if mean <= 0:
        return mean - half, mean + half
    relative = half / mean
    return mean * math.exp(-relative), mean * math.exp(min(relative, 700.0))


def ratio_of_means(above: Any, below: Any, *, positive: bool = False) -> Interval:
    """sum(above) / sum(below) with the t interval of its linear form; both are (n,), paired.

    `positive` computes the interval on the log scale.
    """
    above, below = _vector(above), _vector(below)
    mean = below.mean().clamp_min(1e-300)
    value = above.mean() / mean
    linear = value + (above - value * below) / mean
    return Interval(float(value), *(positive_t_interval(linear) if positive else t_interval(linear)))


def _mean_and_half_width(values: Any) -> tuple[float, float]:
    data = _vector(values)
    return data.mean().item(), t_quantile(data.numel() - 1) * (data.std() / math.sqrt(data.numel())).item()


def mean_score(values: Any) -> Score:
    """Mean of per-problem values between 0 and 1, (problems,), with its bootstrap interval over problems."""
    data = _vector(values)
    low, high = bootstrap_interval(data)
    return Score(data.mean().item(), low, high, data.numel())


def avg_at_k(correct: Any) -> Score:
    """Mean over problems of the fraction of correct samples, c / n.

    Args:
        correct: (problems, samples), booleans or 0/1, as nested lists, numpy array or tensor.

    Returns:
        The mean with its bootstrap interval over problems.

    Raises:
        DataError: no problems, no samples, rows of different lengths, or values other than 0 and 1.
    """
    return mean_score(_outcomes(correct).mean(dim=1))


def pass_at_k(correct: Any, k: int) -> Score:
    """Probability that at least one of k samples is correct: mean over problems of 1 - C(n - c, k) / C(n, k).

    c of the n samples of a problem are correct. Unbiased for every k up to n, unlike 1 - (1 - c/n)^k.

    Args:
        correct: (problems, samples), booleans or 0/1, as nested lists, numpy array or tensor.
        k: number of samples, 1 <= k <= n.

    Returns:
        The mean with its bootstrap interval over problems.

    Raises:
        ConfigurationError: k is below 1 or above the number of samples.
        DataError: as in `avg_at_k`.

    Source: Chen et al. 2021, arXiv 2107.03374, Eq. 1.
    """
    outcomes = _outcomes(correct)
    samples = outcomes.shape[1]
    if not 1 <= k <= samples:
        raise ConfigurationError(
            f"with {counted(samples, 'sample')} per problem, k of pass@k must be between 1 and {samples}, not {k}; "
            "draw more samples or lower k"
        )
    # Exact integers: the ratio of two binomials overflows floats long before it leaves [0, 1].
    by_count = [1 - math.comb(samples - right, k) / math.comb(samples, k) for right in range(samples + 1)]
    return mean_score(torch.tensor(by_count, dtype=torch.float64)[outcomes.sum(dim=1).long()])


def paired_difference(a: Any, b: Any) -> Difference:
    """Mean of a - b over the same problems in the same order, with interval and p-value.

    The interval is a paired bootstrap over problems. The p-value is that of a two-sided sign-flip test: under "no
    difference", each problem's a - b has the other sign with equal probability. The test is exact for up to 13 problems
    and uses 10,000 random flips for more. Unlike a bootstrap p-value, it never reports a difference on two or three
    problems as certain.

    Args:
        a: (problems,) values, or (problems, samples) outcomes, which are averaged per problem first.
        b: likewise, for the same problems.

    Returns:
        The mean difference with its 95 % interval and p-value.

    Raises:
        DataError: different numbers of problems, or none.
    """
    first, second = _per_problem(a), _per_problem(b)
    if first.numel() != second.numel():
        raise DataError(f"a paired comparison needs the same problems: {first.numel()} in a, {second.numel()} in b")
    differences = first - second
    low, high = bootstrap_interval(differences)
    return Difference(differences.mean().item(), low, high, _sign_flip_p_value(differences))


def _sign_flip_p_value(differences: Tensor) -> float:
    count = differences.numel()
    observed = differences.sum().abs()
    tolerance = 1e-9 * differences.abs().sum()  # sums of the same numbers in another order count as equal
    if 2**count <= DRAWS:
        patterns = torch.arange(2**count).unsqueeze(1).bitwise_right_shift(torch.arange(count)) & 1
        sums = (1 - 2 * patterns).double() @ differences
        return (sums.abs() >= observed - tolerance).double().mean().item()
    generator = torch.Generator().manual_seed(SEED)
    extreme = 0
    for size in _block_sizes(count):
        signs = 1 - 2 * torch.randint(2, (size, count), generator=generator)
        extreme += int(((signs.double() @ differences).abs() >= observed - tolerance).sum())
    return (extreme + 1) / (DRAWS + 1)  # the observed signs are one of the patterns


def _block_sizes(count: int) -> list[int]:
    block = max(1, min(DRAWS, _BLOCK // count))
    return [min(block, DRAWS - start) for start in range(0, DRAWS, block)]


def _outcomes(correct: Any) -> Tensor:
    outcomes = _tensor(correct)
    if outcomes.dim() != 2 or 0 in outcomes.shape:
        raise DataError(
            f"expected (problems, samples) outcomes with at least one of each, got shape {tuple(outcomes.shape)}"
        )
    if not ((outcomes == 0) | (outcomes == 1)).all():
        raise DataError("outcomes must be True or False (1 or 0); convert partial scores to correct or incorrect first")
    return outcomes


def _per_problem(values: Any) -> Tensor:
    data = _tensor(values)
    return _outcomes(data).mean(dim=1) if data.dim() == 2 else _vector(data)


def _vector(values: Any) -> Tensor:
    data = _tensor(values)
    if data.dim() != 1 or data.numel() == 0:
        raise DataError(f"expected one value per problem and at least one problem, got shape {tuple(data.shape)}")
    if not data.isfinite().all():
        raise DataError("a value is NaN or infinite; every problem needs a finite value")
    return data


def _tensor(values: Any) -> Tensor:
    if isinstance(values, Sequence):
        values = [row.tolist() if hasattr(row, "tolist") else row for row in values]
    try:
        return torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    except (ValueError, TypeError) as error:
        raise DataError("rows must be numbers, with the same number of samples for every problem") from error

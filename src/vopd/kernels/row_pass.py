"""The interface of a row pass: statistics of a chunk of logits, then their gradient, however it is computed.

Two implementations: ``torch_rows`` (plain torch, in place) and ``triton_rows`` (two kernels). Neither knows an
estimator; ``row_statistics`` turns what they return into ``Rows``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from .rows import GradientForm

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class Support:
    """Tokens kept one by one.

    Attributes:
        ids: (C, k), distinct where present; k may be 0.
        present: (C, k) booleans; an absent entry's id means nothing.
        holds_top: the student's most likely token is known to be among them.
    """

    ids: Int[Tensor, "C k"]
    present: Bool[Tensor, "C k"]
    holds_top: bool = False


@dataclass(frozen=True)
class Sums:
    """Statistics of C rows about the student's most likely token ("top"), (C,) each.

    Sums run over the tokens that are neither the top one nor in the support, with e = exp(z - z_top) and
    d' = d - d_top, d = z - t. None marks what was not asked for or needs teacher rows.

    Attributes:
        top_ids, top_logits: the top token and z_top.
        mass, square_mass: sums of e, e^2.
        difference, square_difference: sums of e d', e^2 d'.
        difference_square, square_difference_square: sums of e d'^2, e^2 d'^2.
        entropy: sum of -e log e.
        top_difference: d_top.
        teacher_top_logits, teacher_log_mass: t_max and log sum exp(t - t_max) of the teacher's whole row; apart,
            since their sum would round away what the largest logit has digits for.
    """

    top_ids: Int[Tensor, " C"]
    top_logits: Float[Tensor, " C"]
    mass: Float[Tensor, " C"]
    square_mass: Float[Tensor, " C"] | None = None
    difference: Float[Tensor, " C"] | None = None
    square_difference: Float[Tensor, " C"] | None = None
    difference_square: Float[Tensor, " C"] | None = None
    square_difference_square: Float[Tensor, " C"] | None = None
    entropy: Float[Tensor, " C"] | None = None
    top_difference: Float[Tensor, " C"] | None = None
    teacher_top_logits: Float[Tensor, " C"] | None = None
    teacher_log_mass: Float[Tensor, " C"] | None = None


@dataclass(frozen=True)
class ChunkLogits:
    """Logits of a chunk, (C, V) float32 or wider, in buffers that a row pass may overwrite.

    Attributes:
        student, teacher: before any soft cap; the teacher's may be None.
        student_cap, teacher_cap: z = cap tanh(x / cap) of what the buffers hold; None for none.
        may_exclude: logits of minus infinity may occur.
    """

    student: Float[Tensor, "C V"]
    teacher: Float[Tensor, "C V"] | None
    student_cap: float | None = None
    teacher_cap: float | None = None
    may_exclude: bool = False


class RowPass(Protocol):
    """One pass over a chunk: ``at``, then ``sums``, then at most once ``gradient``."""

    def at(self, ids: Int[Tensor, "C J"]) -> tuple[Float[Tensor, "C J"], Float[Tensor, "C J"] | None]:
        """Student and teacher logits at ids, soft caps applied, (C, J) each."""
        ...

    def sums(self, support: Support, order: int, diagnostics: bool) -> Sums:
        """Reads every logit. ``order`` is that of ``Needs``; ``diagnostics`` asks for all there is."""
        ...

    def gradient(self, form: GradientForm, totals: Float[Tensor, " C"], dtype: torch.dtype) -> Float[Tensor, "C V"]:
        """a p + b p d' + values at ids, times the slope of the student's soft cap: the gradient in what its buffer
        held, (C, V) of ``dtype``, over a buffer that is no longer needed. ``totals`` are the sums of e over all."""
        ...


MakePass = Callable[[ChunkLogits], RowPass]


def soft_cap(logits: Float[Tensor, "*shape"], cap: float | None) -> Float[Tensor, "*shape"]:
    """cap tanh(logits / cap), out of place; the logits themselves without a cap."""
    return logits if cap is None else logits.div(cap).tanh_().mul_(cap)


def soft_cap_slope(capped: Float[Tensor, "*shape"], cap: float) -> Float[Tensor, "*shape"]:
    """Derivative of the soft cap at its value z: 1 - (z / cap)^2."""
    return 1 - (capped / cap).square()

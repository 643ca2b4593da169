"""The interface of a row pass: statistics of a chunk of logits, then their gradient, however it is computed.

Two implementations: ``torch_rows`` (plain torch, in place) and ``triton_rows`` (two kernels). Neither knows an
estimator; ``row_statistics`` turns what they return into ``Rows``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .rows import GradientForm


@dataclass(frozen=True)
class Support:
    """Tokens kept one by one.

    Attributes:
        ids: (C, k), distinct where present; k may be 0.
        present: (C, k) booleans; an absent entry's id means nothing.
        holds_top: the student's most likely token is known to be among them.
    """

    ids: Tensor
    present: Tensor
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

    top_ids: Tensor
    top_logits: Tensor
    mass: Tensor
    square_mass: Tensor | None = None
    difference: Tensor | None = None
    square_difference: Tensor | None = None
    difference_square: Tensor | None = None
    square_difference_square: Tensor | None = None
    entropy: Tensor | None = None
    top_difference: Tensor | None = None
    teacher_top_logits: Tensor | None = None
    teacher_log_mass: Tensor | None = None


@dataclass(frozen=True)
class ChunkLogits:
    """Logits of a chunk, (C, V) float32 or wider, in buffers that a row pass may overwrite.

    Attributes:
        student, teacher: before any soft cap; the teacher's may be None.
        student_cap, teacher_cap: z = cap tanh(x / cap) of what the buffers hold; None for none.
        may_exclude: logits of minus infinity may occur.
    """

    student: Tensor
    teacher: Tensor | None
    student_cap: float | None = None
    teacher_cap: float | None = None
    may_exclude: bool = False


class RowPass(Protocol):
    """One pass over a chunk: ``at``, then ``sums``, then at most once ``gradient``."""

    def at(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Student and teacher logits at ids, soft caps applied, (C, J) each."""
        ...

    def sums(self, support: Support, order: int, diagnostics: bool) -> Sums:
        """Reads every logit. ``order`` is that of ``Needs``; ``diagnostics`` asks for all there is."""
        ...

    def gradient(self, form: GradientForm, totals: Tensor, dtype: torch.dtype) -> Tensor:
        """a p + b p d' + values at ids, times the slope of the student's soft cap: the gradient in what its buffer
        held, (C, V) of ``dtype``, over a buffer that is no longer needed. ``totals`` are the sums of e over all."""
        ...


MakePass = Callable[[ChunkLogits], RowPass]


def soft_cap(logits: Tensor, cap: float | None) -> Tensor:
    """cap tanh(logits / cap), out of place; the logits themselves without a cap."""
    return logits if cap is None else logits.div(cap).tanh_().mul_(cap)


def soft_cap_slope(capped: Tensor, cap: float) -> Tensor:
    """Derivative of the soft cap at its value z: 1 - (z / cap)^2."""
    return 1 - (capped / cap).square()

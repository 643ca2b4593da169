"""The interface of a row pass, which computes the statistics of a chunk of logits and then its gradient.

There are two implementations: ``torch_rows`` (plain torch, in place) and ``triton_rows`` (two kernels). Neither depends
on an estimator; ``row_statistics`` turns their results into ``Rows``.
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
    """Tokens whose statistics are kept individually.

    Attributes:
        ids: (C, k), distinct where present; k may be 0.
        present: (C, k), booleans; ids of missing entries are ignored.
        holds_top: whether the student's most likely token is known to be among them.
    """

    ids: Int[Tensor, "C k"]
    present: Bool[Tensor, "C k"]
    holds_top: bool = False


@dataclass(frozen=True)
class Sums:
    """Statistics of C rows relative to the student's most likely token ("top"), (C,) each.

    z and t are the student's and the teacher's logits, d = z - t, d' = d - d_top and e = exp(z - z_top). Sums run over
    the tokens that are neither top nor in the support. A field is None if it was not requested or needs teacher rows.

    Attributes:
        top_ids: the top token.
        top_logits: z_top.
        mass: sum of e.
        square_mass: sum of e^2.
        difference: sum of e d'.
        square_difference: sum of e^2 d'.
        difference_square: sum of e d'^2.
        square_difference_square: sum of e^2 d'^2.
        entropy: sum of -e log e.
        top_difference: d_top.
        teacher_top_logits: t_max, the largest logit of the teacher's full row.
        teacher_log_mass: log sum exp(t - t_max); separate from t_max, because their sum would lose digits.
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
    """Logits of a chunk, (C, V), float32 or wider, in buffers that a row pass may overwrite.

    Attributes:
        student: logits x before the soft cap.
        teacher: likewise, or None.
        student_cap: soft cap z = cap tanh(x / cap) that is still to be applied; None without a cap.
        teacher_cap: likewise, for the teacher.
        may_exclude: whether logits of minus infinity may occur.
    """

    student: Float[Tensor, "C V"]
    teacher: Float[Tensor, "C V"] | None
    student_cap: float | None = None
    teacher_cap: float | None = None
    may_exclude: bool = False


class RowPass(Protocol):
    """One pass over a chunk: call ``at``, then ``sums``, then at most once ``gradient``."""

    def at(self, ids: Int[Tensor, "C J"]) -> tuple[Float[Tensor, "C J"], Float[Tensor, "C J"] | None]:
        """Return student and teacher logits at ids, with soft caps applied, (C, J) each."""
        ...

    def sums(self, support: Support, order: int, diagnostics: bool) -> Sums:
        """Read every logit. ``order`` is that of ``Needs``; with ``diagnostics`` all statistics are computed."""
        ...

    def gradient(self, form: GradientForm, totals: Float[Tensor, " C"], dtype: torch.dtype) -> Float[Tensor, "C V"]:
        """Return the gradient with respect to the student's buffer, (C, V) in ``dtype``.

        It is (a p + b p d' + values at ids) times the slope of the student's soft cap, written over a buffer that is no
        longer needed. ``totals`` are the sums of e over all tokens.
        """
        ...


MakePass = Callable[[ChunkLogits], RowPass]


def soft_cap(logits: Float[Tensor, "*shape"], cap: float | None) -> Float[Tensor, "*shape"]:
    """Return cap tanh(logits / cap), out of place; the logits unchanged without a cap."""
    return logits if cap is None else logits.div(cap).tanh_().mul_(cap)


def soft_cap_slope(capped: Float[Tensor, "*shape"], cap: float) -> Float[Tensor, "*shape"]:
    """Derivative of the soft cap at its value z: 1 - (z / cap)^2."""
    return 1 - (capped / cap).square()

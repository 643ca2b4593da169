"""Sources of logits, which also take their gradient: full logits, or hidden states with output heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from .heads import Head, Projection, multiply
from .row_pass import ChunkLogits

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class LogitSource(Protocol):
    """Provides logits of selected rows in float32 or wider, in its own buffers, and takes their gradient.

    Attributes:
        vocab_size: number of columns of the logits.
        full_teacher_is_free: whether full teacher rows cost no matrix product; they are then used even if a few ids
            would be enough.
        dtype: dtype of the logits.
        gradient_dtype: dtype of the gradient that ``accumulate`` takes.
    """

    vocab_size: int
    full_teacher_is_free: bool
    dtype: torch.dtype
    gradient_dtype: torch.dtype

    def logits(self, rows: Int[Tensor, " C"], with_teacher: bool) -> ChunkLogits:
        """Return logits of the rows, (C, V), which may be overwritten; the teacher's only if requested, else None."""
        ...

    def teacher_at(self, rows: Int[Tensor, " C"], ids: Int[Tensor, "C J"]) -> Float[Tensor, "C J"]:
        """Return teacher logits at ids, (C, J), without computing the full row."""
        ...

    def accumulate(self, rows: Int[Tensor, " C"], gradient: Float[Tensor, "C V"]) -> None:
        """Take the gradient of the summed loss with respect to the student logits that ``logits`` returned, (C, V)."""
        ...

    def gradients(self) -> list[Float[Tensor, " ..."] | None]:
        """Return the gradients accumulated so far, one per differentiable input; None where none is requested."""
        ...


def compute_dtype(*tensors: Float[Tensor, " ..."] | None) -> torch.dtype:
    """Return the dtype of the statistics: float64 if any tensor is float64, else float32."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


@dataclass
class DenseLogits:
    """Full logits of both models, (N, V_s) and (N, V_t), each cut to ``vocab_size`` columns."""

    student_logits: Float[Tensor, "N V_s"]
    teacher_logits: Float[Tensor, "N V_t"] | None
    vocab_size: int
    temperature: float
    wants_gradient: bool
    gradient: Float[Tensor, "N V_s"] | None = None
    full_teacher_is_free = True

    def __post_init__(self) -> None:
        self.dtype = self.gradient_dtype = compute_dtype(self.student_logits, self.teacher_logits)
        if self.wants_gradient:
            self.gradient = torch.zeros_like(self.student_logits)

    def logits(self, rows: Int[Tensor, " C"], with_teacher: bool) -> ChunkLogits:
        """Return logits divided by temperature; callers may have excluded tokens with -inf."""
        teacher = None if self.teacher_logits is None else self._rows(self.teacher_logits, rows)
        return ChunkLogits(self._rows(self.student_logits, rows), teacher, may_exclude=True)

    def teacher_at(self, rows: Int[Tensor, " C"], ids: Int[Tensor, "C J"]) -> Float[Tensor, "C J"]:
        """Return teacher logits divided by temperature at ids, (C, J)."""
        assert self.teacher_logits is not None
        return self._rows(self.teacher_logits, rows).gather(-1, ids)

    def accumulate(self, rows: Int[Tensor, " C"], gradient: Float[Tensor, "C V"]) -> None:
        """Write the gradient of the rows, divided by temperature, in the dtype of the student logits."""
        assert self.gradient is not None
        self.gradient[rows, : self.vocab_size] = gradient.div_(self.temperature).to(self.gradient.dtype)

    def gradients(self) -> list[Float[Tensor, " ..."] | None]:
        """Return the gradient with respect to the student's logits, (N, V_s)."""
        return [self.gradient]

    def _rows(self, logits: Float[Tensor, "N V_any"], rows: Int[Tensor, " C"]) -> Float[Tensor, "C V"]:
        chosen = logits.index_select(0, rows)[:, : self.vocab_size]
        # index_select copies, so this buffer may be overwritten.
        return chosen.to(self.dtype).contiguous().div_(self.temperature)


class LinearHeads:
    """Hidden states, (N, D), and output heads of both models; logits are computed for one chunk at a time.

    Gradients are those of the plain sum of the token losses. Dividing by a normalizer here would push half-precision
    gradients towards zero.

    Args:
        student_hidden: (N, D_s).
        student: the student's head.
        teacher_hidden: (N, D_t), or None.
        teacher: the teacher's head, or None.
        vocab_size: number of rows of both heads that are used.
        temperature: both models' logits are divided by it.
        wants: whether the student's hidden states, head weight and head bias get gradient.
    """

    full_teacher_is_free = False

    def __init__(
        self,
        student_hidden: Float[Tensor, "N D_s"],
        student: Head,
        teacher_hidden: Float[Tensor, "N D_t"] | None,
        teacher: Head | None,
        *,
        vocab_size: int,
        temperature: float,
        wants: Sequence[bool],
    ) -> None:
        self.vocab_size = vocab_size
        self.dtype = compute_dtype(
            student_hidden, student.weight, teacher_hidden, None if teacher is None else teacher.weight
        )
        self._student = Projection(student_hidden, student, vocab_size, temperature, self.dtype)
        self._teacher = None
        if teacher_hidden is not None and teacher is not None:
            self._teacher = Projection(teacher_hidden, teacher, vocab_size, temperature, self.dtype)
        self.gradient_dtype = self._student.product_dtype
        zeros = student.weight.new_zeros
        self._hidden_gradient = torch.zeros_like(student_hidden) if wants[0] else None
        self._weight_gradient = zeros(student.weight.shape, dtype=self.dtype) if wants[1] else None
        self._bias_gradient = zeros(len(student.weight), dtype=self.dtype) if wants[2] else None

    def logits(self, rows: Int[Tensor, " C"], with_teacher: bool) -> ChunkLogits:
        """Return logits divided by temperature; the row pass applies their soft caps."""
        teacher = self._teacher if with_teacher else None
        return ChunkLogits(
            self._student.logits(rows),
            None if teacher is None else teacher.logits(rows),
            student_cap=self._student.softcap,
            teacher_cap=None if teacher is None else teacher.softcap,
        )

    def teacher_at(self, rows: Int[Tensor, " C"], ids: Int[Tensor, "C J"]) -> Float[Tensor, "C J"]:
        """Return teacher logits divided by temperature at ids, (C, J), from these rows of the head only."""
        assert self._teacher is not None
        return self._teacher.at(rows, ids)

    def accumulate(self, rows: Int[Tensor, " C"], gradient: Float[Tensor, "C V"]) -> None:
        """Add the gradient of these rows to those of the student's hidden states, head weight and bias."""
        alpha = self._student.alpha
        if self._hidden_gradient is not None:
            weight = self._student.weight()
            share = multiply(gradient, weight, gradient.new_empty(len(rows), weight.shape[-1], dtype=self.dtype), alpha)
            self._hidden_gradient[rows] = share.to(self._hidden_gradient.dtype)
        if self._weight_gradient is not None:
            total = self._weight_gradient[: self.vocab_size]
            multiply(gradient.T, self._student.hidden(rows), total, alpha, accumulate=True)
        if self._bias_gradient is not None:
            self._bias_gradient[: self.vocab_size].add_(gradient.sum(0, dtype=self.dtype), alpha=alpha)

    def gradients(self) -> list[Float[Tensor, " ..."] | None]:
        """Return the gradients of hidden states (in their dtype), head weight and bias (float32 or wider)."""
        return [self._hidden_gradient, self._weight_gradient, self._bias_gradient]

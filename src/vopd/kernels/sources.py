"""Where the logits of a chunk come from, and where their gradient goes: full logits, or hidden states and heads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class LogitSource(Protocol):
    """Gives float32 (or wider) logits of chosen rows in buffers of its own, and takes their gradient.

    Attributes:
        vocab_size: columns of the logits.
        full_teacher_is_free: full teacher rows cost no product, so they are used even where a few ids would do.
        may_exclude: logits of -inf may occur.
        dtype: of the logits.
    """

    vocab_size: int
    full_teacher_is_free: bool
    may_exclude: bool
    dtype: torch.dtype

    def student(self, rows: Tensor) -> Tensor:
        """Student logits of the rows, (C, V), free to overwrite."""
        ...

    def teacher(self, rows: Tensor) -> Tensor | None:
        """Teacher logits of the rows, (C, V), free to overwrite; None if scores come from elsewhere."""
        ...

    def teacher_at(self, rows: Tensor, ids: Tensor) -> Tensor:
        """Teacher logits at ids, (C, J), without the rest of the row."""
        ...

    def accumulate(self, rows: Tensor, gradient: Tensor) -> None:
        """Takes the gradient of the loss in the student logits given for the rows, (C, V)."""
        ...

    def gradients(self) -> list[Tensor | None]:
        """The gradients accumulated so far, one for each differentiable input; None where none is wanted."""
        ...


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any tensor is, else float32: what statistics are computed in."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


@dataclass
class DenseLogits:
    """Full logits of both models, (N, V_s) and (N, V_t), each cut to ``vocab_size`` columns."""

    student_logits: Tensor
    teacher_logits: Tensor | None
    vocab_size: int
    temperature: float
    wants_gradient: bool
    gradient: Tensor | None = None
    full_teacher_is_free = True
    may_exclude = True

    def __post_init__(self) -> None:
        self.dtype = compute_dtype(self.student_logits, self.teacher_logits)
        if self.wants_gradient:
            self.gradient = torch.zeros_like(self.student_logits)

    def student(self, rows: Tensor) -> Tensor:
        """Student logits over temperature, (C, V)."""
        return self._rows(self.student_logits, rows)

    def teacher(self, rows: Tensor) -> Tensor | None:
        """Teacher logits over temperature, (C, V)."""
        return None if self.teacher_logits is None else self._rows(self.teacher_logits, rows)

    def teacher_at(self, rows: Tensor, ids: Tensor) -> Tensor:
        """Teacher logits over temperature at ids, (C, J)."""
        assert self.teacher_logits is not None
        return self._rows(self.teacher_logits, rows).gather(-1, ids)

    def accumulate(self, rows: Tensor, gradient: Tensor) -> None:
        """Writes the gradient of the rows over temperature in the student logits' dtype."""
        assert self.gradient is not None
        self.gradient[rows, : self.vocab_size] = gradient.div_(self.temperature).to(self.gradient.dtype)

    def gradients(self) -> list[Tensor | None]:
        """The gradient in the student's logits, (N, V_s)."""
        return [self.gradient]

    def _rows(self, logits: Tensor, rows: Tensor) -> Tensor:
        chosen = logits.index_select(0, rows)[:, : self.vocab_size]
        # index_select has copied, so the buffer is ours unless the cast or the cut made it a view of the copy.
        return chosen.to(self.dtype).contiguous().div_(self.temperature)


@dataclass
class LinearHeads:
    """Hidden states (N, D) and output heads (V, D) of both models; logits exist a chunk at a time.

    The head products run in float32 (float64 if an input is): rounding logits to bf16 would put an error of 0.02 to
    0.08 nats into each advantage.
    """

    student_hidden: Tensor
    student_head: Tensor
    teacher_hidden: Tensor | None
    teacher_head: Tensor | None
    vocab_size: int
    temperature: float
    wants_hidden_gradient: bool
    wants_head_gradient: bool
    hidden_gradient: Tensor | None = None
    head_gradient: Tensor | None = None
    full_teacher_is_free = False
    may_exclude = False
    _buffers: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dtype = compute_dtype(self.student_hidden, self.student_head, self.teacher_hidden, self.teacher_head)
        # Cast once a call, not once a chunk; no copy where the dtype is right already.
        self._student_head = self.student_head[: self.vocab_size].to(self.dtype)
        self._teacher_head = None if self.teacher_head is None else self.teacher_head[: self.vocab_size]
        if self.wants_hidden_gradient:
            self.hidden_gradient = torch.zeros_like(self.student_hidden)
        if self.wants_head_gradient:
            self.head_gradient = torch.zeros_like(self.student_head, dtype=self.dtype)

    def student(self, rows: Tensor) -> Tensor:
        """Student logits over temperature, (C, V)."""
        return self._product("student", self.student_hidden, self._student_head, rows)

    def teacher(self, rows: Tensor) -> Tensor | None:
        """Teacher logits over temperature, (C, V)."""
        if self.teacher_hidden is None or self._teacher_head is None:
            return None
        if self._teacher_head.dtype != self.dtype:
            self._teacher_head = self._teacher_head.to(self.dtype)
        return self._product("teacher", self.teacher_hidden, self._teacher_head, rows)

    def teacher_at(self, rows: Tensor, ids: Tensor) -> Tensor:
        """Teacher logits over temperature at ids, (C, J), from those rows of the head only."""
        assert self.teacher_hidden is not None and self._teacher_head is not None
        hidden = self.teacher_hidden.index_select(0, rows).to(self.dtype)
        weights = self._teacher_head[ids].to(self.dtype)
        return torch.bmm(weights, hidden.unsqueeze(-1)).squeeze(-1).div_(self.temperature)

    def accumulate(self, rows: Tensor, gradient: Tensor) -> None:
        """Adds the rows' share to the gradients of the student's hidden states and head."""
        if self.temperature != 1:
            gradient.div_(self.temperature)
        if self.hidden_gradient is not None:
            self.hidden_gradient[rows] = (gradient @ self._student_head).to(self.hidden_gradient.dtype)
        if self.head_gradient is not None:
            hidden = self.student_hidden.index_select(0, rows).to(self.dtype)
            self.head_gradient[: self.vocab_size].addmm_(gradient.T, hidden)

    def gradients(self) -> list[Tensor | None]:
        """The gradients in the student's hidden states and head."""
        return [self.hidden_gradient, self.head_gradient]

    def _product(self, name: str, hidden: Tensor, head: Tensor, rows: Tensor) -> Tensor:
        if name not in self._buffers:
            self._buffers[name] = torch.empty(len(rows), self.vocab_size, dtype=self.dtype, device=hidden.device)
        logits = self._buffers[name][: len(rows)]
        torch.mm(hidden.index_select(0, rows).to(self.dtype), head.T, out=logits)
        return logits if self.temperature == 1 else logits.div_(self.temperature)

"""The row pass in plain torch, in place on one chunk of logits.

The two [C, V] buffers are the only memory of that size: the teacher's is overwritten by the differences d', the
student's by exp(z - max) and then by the gradient. Operations that need scratch memory run on blocks of rows, so that
the scratch stays in cache and never reaches the size of a buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .row_pass import ChunkLogits, Sums, Support, soft_cap_slope
from .rows import GradientForm
from .support import top_k_ids

if TYPE_CHECKING:
    from jaxtyping import Float, Int

CPU_BLOCK = 1 << 16
"""Elements of a block of rows on a CPU: 256 KiB in float32; two operands fit into a second-level cache."""


class TorchPass:
    """``RowPass`` in torch operations."""

    def __init__(self, logits: ChunkLogits) -> None:
        self._student, self._teacher = logits.student, logits.teacher
        self._cap, self._may_exclude = logits.student_cap, logits.may_exclude
        for buffer, cap in ((logits.student, logits.student_cap), (logits.teacher, logits.teacher_cap)):
            if buffer is not None and cap is not None:
                for rows in row_blocks(buffer):
                    buffer[rows].div_(cap).tanh_().mul_(cap)

    def at(self, ids: Int[Tensor, "C J"]) -> tuple[Float[Tensor, "C J"], Float[Tensor, "C J"] | None]:
        """Return logits at ids, (C, J) each; call before ``sums``."""
        student = self._student.gather(-1, ids)
        self._known_ids, self._known_logits = ids, student
        return student, None if self._teacher is None else self._teacher.gather(-1, ids)

    def sums(self, support: Support, order: int, diagnostics: bool) -> Sums:
        """Overwrite the teacher's buffer with d' and the student's with exp(z - z_top), 0 at top and support."""
        student, teacher = self._student, self._teacher
        self._tops, top_ids = _top(student, support)
        top = top_ids.unsqueeze(-1)
        self._kept = torch.cat([top, torch.where(support.present, support.ids, top)], dim=-1)
        found: dict[str, Tensor] = {}
        if teacher is not None:
            found["teacher_top_logits"], found["teacher_log_mass"] = log_normalizers(teacher)
            found["top_difference"] = self._tops - teacher.gather(-1, top).squeeze(-1)
            subtract_into_teacher(student, teacher, found["top_difference"], self._may_exclude)
        self._kept_values = exponentiate(student, self._tops, self._kept)
        # Times e of the top token: 1, or NaN if its logit is infinite and the row is not a distribution.
        mass = student.sum(-1).mul_(self._kept_values[:, 0])
        if diagnostics:
            found["entropy"] = entropy_sums(student)
        if teacher is not None and order:
            names = (
                "difference",
                "square_mass",
                "square_difference",
                "difference_square",
                "square_difference_square",
            )
            found |= zip(names, moment_sums(student, teacher, order, diagnostics))
        elif order == 2:
            found["square_mass"] = square_masses(student)
        return Sums(top_ids, self._tops, mass, **found)

    def gradient(self, form: GradientForm, totals: Float[Tensor, " C"], dtype: torch.dtype) -> Float[Tensor, "C V"]:
        """Write the gradient over the student's buffer and return it."""
        exponentials = self._student.scatter_(-1, self._kept, self._kept_values)
        values = form.values
        if self._cap is not None:
            values = values * self._slope_at(form.ids)
        a = (form.a / totals).unsqueeze(-1)
        b = None if form.b is None else (form.b / totals).unsqueeze(-1)
        for rows in row_blocks(exponentials):
            block = exponentials[rows]
            slope = None if self._cap is None else self._slope(block, rows)
            if b is None or self._teacher is None:
                block.mul_(a[rows])
            else:
                block.mul_(self._teacher[rows].mul_(b[rows]).add_(a[rows]))
            if slope is not None:
                block.mul_(slope)
        return exponentials.scatter_add_(-1, form.ids, values).to(dtype)

    def _slope_at(self, ids: Int[Tensor, "C J"]) -> Float[Tensor, "C J"]:
        """Slope of the soft cap at ids, (C, J), from the exact logits of the top token and of the ids of ``at``."""
        top_ids, tops = self._kept[:, :1], self._tops.unsqueeze(-1)
        logits = self._student.scatter_(-1, top_ids, tops).scatter_(-1, self._known_ids, self._known_logits)
        assert self._cap is not None
        slope = soft_cap_slope(logits.gather(-1, ids), self._cap)
        self._student.scatter_(-1, self._known_ids, (self._known_logits - tops).exp())
        self._student.scatter_(-1, top_ids, 1)
        return slope

    def _slope(self, exponentials: Float[Tensor, "C V"], rows: slice) -> Float[Tensor, "C V"]:
        """Slope of the soft cap from z = z_top + log e; where e underflows, the gradient is 0 for any slope."""
        smallest = torch.finfo(exponentials.dtype).tiny
        assert self._cap is not None
        return soft_cap_slope(exponentials.clamp_min(smallest).log_().add_(self._tops[rows].unsqueeze(-1)), self._cap)


def _top(student: Float[Tensor, "C V"], support: Support) -> tuple[Float[Tensor, " C"], Int[Tensor, " C"]]:
    """Return logit and id of each row's most likely token; of equal tokens, one in the support."""
    logits, ids = None, None
    if support.ids.shape[-1]:
        known = student.gather(-1, support.ids).masked_fill(~support.present, -torch.inf)
        logits, columns = known.max(dim=-1)
        ids = support.ids.gather(-1, columns.unsqueeze(-1)).squeeze(-1)
        if support.holds_top:
            return logits, ids
    top_ids = top_k_ids(student, 1)
    top_logits, top_ids = student.gather(-1, top_ids).squeeze(-1), top_ids.squeeze(-1)
    if logits is not None and ids is not None:
        top_ids = torch.where(logits >= top_logits, ids, top_ids)
    return top_logits, top_ids


def row_blocks(buffer: Float[Tensor, "C V"]) -> Iterator[slice]:
    """Return slices of rows with small elementwise scratch; all rows at once on GPUs, where launches cost more."""
    rows, width = buffer.shape
    step = max(1, CPU_BLOCK // max(width, 1)) if buffer.device.type == "cpu" else max(rows, 1)
    return (slice(start, min(start + step, rows)) for start in range(0, max(rows, 1), step))


def by_blocks(buffer: Float[Tensor, "C V"], reduce: Callable[[slice], Tensor]) -> Float[Tensor, "C ..."]:
    """Apply a row reduction (rows -> (rows, ...)) block by block."""
    return torch.cat([reduce(rows) for rows in row_blocks(buffer)])


def log_normalizers(logits: Float[Tensor, "C V"]) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
    """Return the largest logit of each row and log sum exp(logit - largest), (C,) each."""
    largest = logits.amax(-1)
    # For a row of -inf the sum is 0, not that of exp(-inf + inf).
    shift = largest.masked_fill(largest == -torch.inf, 0).unsqueeze(-1)
    return largest, by_blocks(logits, lambda rows: logits[rows].sub(shift[rows]).exp_().sum(-1)).log_()


def subtract_into_teacher(
    student: Float[Tensor, "C V"],
    teacher: Float[Tensor, "C V"],
    top_differences: Float[Tensor, " C"],
    may_exclude: bool,
) -> None:
    """Overwrite the teacher's logits with d' = d - d_top.

    A token that the student excludes (-inf, which occurs only with ``may_exclude``) has no mass, whatever the teacher's
    logit is: its d' is set to 0, because 0 * inf would turn the sums into NaN.
    """
    for rows in row_blocks(student):
        torch.sub(student[rows], teacher[rows], out=teacher[rows]).sub_(top_differences[rows].unsqueeze(-1))
        if may_exclude:
            teacher[rows].masked_fill_(student[rows] == -torch.inf, 0)


def exponentiate(
    student: Float[Tensor, "C V"], top_logits: Float[Tensor, " C"], kept_ids: Int[Tensor, "C K"]
) -> Float[Tensor, "C K"]:
    """Overwrite the student's logits with exp(z - z_top), 0 at the kept ids; return the values there, (C, K)."""
    kept = (student.gather(-1, kept_ids) - top_logits.unsqueeze(-1)).exp()
    for rows in row_blocks(student):
        student[rows].sub_(top_logits[rows].unsqueeze(-1)).exp_()
    student.scatter_(-1, kept_ids, 0)
    return kept


def moment_sums(
    student: Float[Tensor, "C V"], difference: Float[Tensor, "C V"], order: int, diagnostics: bool
) -> list[Float[Tensor, " C"]]:
    """Return [sum e d', sum e^2, sum e^2 d', sum e d'^2, sum e^2 d'^2] of each row, up to what is requested."""

    def sums(rows: slice) -> Tensor:
        mass, centred = student[rows], difference[rows]
        weighted = mass * centred
        result = [weighted.sum(-1)]
        if order >= 2:
            result += [square_masses(mass), (mass * weighted).sum(-1)]
        if diagnostics:
            result += [(weighted * centred).sum(-1), square_masses(weighted)]
        return torch.stack(result, dim=-1)

    return list(by_blocks(student, sums).unbind(-1))


def square_masses(student: Float[Tensor, "C V"]) -> Float[Tensor, " C"]:
    """Return the sum of squares of each row, (C,)."""
    return torch.linalg.vector_norm(student, dim=-1).square()


def entropy_sums(student: Float[Tensor, "C V"]) -> Float[Tensor, " C"]:
    """Return the sum of -e log e of each row, (C,)."""
    smallest = torch.finfo(student.dtype).tiny  # log 0 would turn 0 log 0 into NaN

    def sums(rows: slice) -> Tensor:
        mass = student[rows]
        return -(mass.clamp_min(smallest).log_().mul_(mass)).sum(-1)

    return by_blocks(student, sums)

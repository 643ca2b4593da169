"""Row statistics and the gradient form in plain torch, in place over one chunk of logits.

The two [C, V] buffers are all the vocabulary-sized memory there is: the teacher's turns into the differences d', the
student's into exp(z - max), then into the gradient. Row operations that need scratch run on blocks of rows, so that
the scratch stays in cache and never reaches the size of a buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .rows import GradientForm

CPU_BLOCK = 1 << 16
"""Elements of a block of rows on a CPU: 256 KiB in float32, which two operands keep in a second-level cache."""


def row_blocks(buffer: Tensor) -> Iterator[slice]:
    """Slices of rows whose elementwise scratch is small; all rows at once where launches cost more than memory."""
    rows, width = buffer.shape
    step = max(1, CPU_BLOCK // max(width, 1)) if buffer.device.type == "cpu" else max(rows, 1)
    return (slice(start, min(start + step, rows)) for start in range(0, max(rows, 1), step))


def by_blocks(buffer: Tensor, reduce: Callable[[slice], Tensor]) -> Tensor:
    """Applies a row reduction (rows -> (rows, ...)) block by block."""
    return torch.cat([reduce(rows) for rows in row_blocks(buffer)])


def log_normalizers(logits: Tensor) -> Tensor:
    """Log-sum-exp of each row, (C,)."""
    return by_blocks(logits, lambda rows: torch.logsumexp(logits[rows], dim=-1))


def subtract_into_teacher(student: Tensor, teacher: Tensor, top_ids: Tensor, may_exclude: bool) -> None:
    """Overwrites the teacher's logits with d' = d - d_top.

    A token that the student's logits exclude (-inf, which ``may_exclude`` says can occur) has no mass, whatever the
    teacher says: its d' is set to 0, lest 0 * inf turn the sums into NaN.
    """
    top = top_ids.unsqueeze(-1)
    top_difference = student.gather(-1, top) - teacher.gather(-1, top)
    for rows in row_blocks(student):
        torch.sub(student[rows], teacher[rows], out=teacher[rows]).sub_(top_difference[rows])
        if may_exclude:
            teacher[rows].masked_fill_(student[rows] == -torch.inf, 0)


def exponentiate(student: Tensor, top_logits: Tensor, support_ids: Tensor) -> Tensor:
    """Overwrites the student's logits with exp(z - max), 0 at the support; returns the support's values, (C, K)."""
    support = (student.gather(-1, support_ids) - top_logits.unsqueeze(-1)).exp()
    for rows in row_blocks(student):
        student[rows].sub_(top_logits[rows].unsqueeze(-1)).exp_()
    student.scatter_(-1, support_ids, 0)
    return support


def masses(student: Tensor) -> Tensor:
    """Sum of each row, (C,)."""
    return student.sum(-1)


def moment_sums(student: Tensor, difference: Tensor, order: int, diagnostics: bool) -> list[Tensor]:
    """[sum e d', sum e^2, sum e^2 d', sum e d'^2, sum e^2 d'^2] of each row, cut after what is asked for."""

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


def square_masses(student: Tensor) -> Tensor:
    """Sum of squares of each row, (C,)."""
    return torch.linalg.vector_norm(student, dim=-1).square()


def entropy_sums(student: Tensor) -> Tensor:
    """Sum of -e log e of each row, (C,)."""
    smallest = torch.finfo(student.dtype).tiny  # log 0 would turn 0 log 0 into NaN

    def sums(rows: slice) -> Tensor:
        mass = student[rows]
        return -(mass.clamp_min(smallest).log_().mul_(mass)).sum(-1)

    return by_blocks(student, sums)


def write_gradient(
    exponentials: Tensor, difference: Tensor | None, totals: Tensor, form: GradientForm, weight: Tensor
) -> Tensor:
    """Turns exp(z - max) into weight (a p + b p d' + values at ids), in place over the student's buffer.

    Args:
        exponentials: exp(z - max), (C, V), support restored.
        difference: d', (C, V), overwritten when b is used.
        totals: row sums of the exponentials, (C,).
        form: a, b, ids, values.
        weight: factor of each row, (C,).
    """
    a = (form.a * weight / totals).unsqueeze(-1)
    if form.b is None:
        exponentials.mul_(a)
    else:
        assert difference is not None
        b = (form.b * weight / totals).unsqueeze(-1)
        exponentials.mul_(difference.mul_(b).add_(a))
    return exponentials.scatter_add_(-1, form.ids, form.values * weight.unsqueeze(-1))

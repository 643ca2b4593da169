"""The row pass in two Triton kernels: every logit is read once for the statistics and once for the gradient."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
from torch import Tensor

from . import triton_kernels
from .row_pass import ChunkLogits, Sums, Support, soft_cap, soft_cap_slope
from .rows import GradientForm

LANES, WIDTH = 512, 4
"""Columns of a tile of ``row_sums``: a 16-byte load for each lane."""

GRADIENT_BLOCK = 4096

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter, on a CPU: TRITON_INTERPRET=1 was set when this was imported."""


class TritonPass:
    """``RowPass`` in Triton kernels, on CUDA tensors, or in Triton's interpreter.

    Support columns leave the kernel's sums by being set to -inf in the student's buffer, and are put back for the
    gradient. Half-precision gradients are written over the teacher's buffer, which is dead by then.
    """

    def __init__(self, logits: ChunkLogits) -> None:
        self._student, self._teacher = logits.student, logits.teacher
        self._cap, self._teacher_cap = logits.student_cap, logits.teacher_cap
        self._holes = logits.may_exclude

    def at(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits at ids, (C, J) each."""
        teacher = None if self._teacher is None else soft_cap(self._teacher.gather(-1, ids), self._teacher_cap)
        return soft_cap(self._student.gather(-1, ids), self._cap), teacher

    def sums(self, support: Support, order: int, diagnostics: bool) -> Sums:
        """Runs ``row_sums`` over what is outside the support, then looks for the top token inside it as well."""
        student = self._student
        self._support_ids = support.ids
        self._support_logits = student.gather(-1, support.ids)
        if support.ids.shape[-1]:
            # The lesser of what is there and -inf; +inf, which changes nothing, where the entry is absent: its id may
            # be anything, also that of another entry.
            exclude = torch.where(support.present, -torch.inf, torch.inf).to(student.dtype)
            student.scatter_reduce_(-1, support.ids, exclude, "amin")
        sums, top_ids = self._row_sums(order, diagnostics, holes=self._holes or support.ids.shape[-1] > 0)
        if support.ids.shape[-1]:
            sums, top_ids = self._with_support(sums, top_ids, support)
        self._tops, self._top_differences = sums[0], sums[1]
        teacher = self._teacher is not None
        return Sums(
            top_ids,
            top_logits=sums[0],
            mass=sums[3],
            square_mass=sums[4] if order >= 2 else None,
            difference=sums[5] if teacher and order >= 1 else None,
            square_difference=sums[6] if teacher and order >= 2 else None,
            difference_square=sums[7] if teacher and diagnostics else None,
            square_difference_square=sums[8] if teacher and diagnostics else None,
            entropy=-sums[9] if diagnostics else None,
            top_difference=sums[1] if teacher else None,
            teacher_top_logits=sums[2] if teacher else None,
            teacher_log_mass=sums[10] if teacher else None,
        )

    def gradient(self, form: GradientForm, totals: Tensor, dtype: torch.dtype) -> Tensor:
        """Over the student's buffer in its own dtype, else over the teacher's.

        The columns of ``form.ids`` are summed in the wider dtype: where the student is nearly certain, a p + value is
        a small difference of large numbers that half precision would lose.
        """
        student = self._student
        if self._support_ids.shape[-1]:
            student.scatter_(-1, self._support_ids, self._support_logits)
        logits = soft_cap(student.gather(-1, form.ids), self._cap)
        slope = 1.0 if self._cap is None else soft_cap_slope(logits, self._cap)
        a = form.a / totals
        in_place = dtype == student.dtype or form.b is not None
        out = student if in_place else self._spare(dtype)
        self._write_gradient(out, a, None if form.b is None else form.b / totals)
        if in_place:
            student.scatter_add_(-1, form.ids, form.values * slope)
            return student if dtype == student.dtype else self._spare(dtype).copy_(student)
        softmax = (logits - self._tops.unsqueeze(-1)).exp_() * a.unsqueeze(-1)
        student.scatter_(-1, form.ids, softmax * slope).scatter_add_(-1, form.ids, form.values * slope)
        return out.scatter_(-1, form.ids, student.gather(-1, form.ids).to(dtype))

    def _row_sums(self, order: int, diagnostics: bool, holes: bool) -> tuple[Tensor, Tensor]:
        """The kernel's sums, (11, C), and the top tokens, (C,)."""
        student, teacher = self._student, self._teacher
        count = len(student)
        # Zeros, since what is not asked for is not written and must not be rebased from garbage.
        sums = student.new_zeros(11, count)
        top_ids = torch.empty(count, dtype=torch.int64, device=student.device)
        other = student if teacher is None else teacher
        with _on(student):
            triton_kernels.row_sums[(count,)](
                student, other, sums, top_ids, student.stride(0), other.stride(0), count, student.shape[1],
                CAP=self._cap or 0.0, TEACHER_CAP=self._teacher_cap or 0.0, TEACHER=teacher is not None,
                ORDER=order, DIAGNOSTICS=diagnostics, HOLES=holes, LANES=LANES, WIDTH=WIDTH,
                num_warps=max(1, LANES // 32),
            )  # fmt: skip
        return sums, top_ids

    def _with_support(self, sums: Tensor, top_ids: Tensor, support: Support) -> tuple[Tensor, Tensor]:
        """The same about the top token of all, which may be in the support: the rule of ``triton_kernels`` once more.

        Where it is, the kernel's own top token becomes one of the others.
        """
        known = soft_cap(self._support_logits, self._cap).masked_fill(~support.present, -torch.inf)
        best, column = known.max(dim=-1, keepdim=True)
        inside = torch.ones_like(column, dtype=torch.bool) if support.holds_top else best >= sums[0].unsqueeze(-1)
        ids = support.ids.gather(-1, column)
        difference = sums[1].unsqueeze(-1)
        if self._teacher is not None:
            difference = best - soft_cap(self._teacher.gather(-1, ids), self._teacher_cap)
        inside, best, ids, difference = (value.squeeze(-1) for value in (inside, best, ids, difference))
        top = torch.where(inside, best, sums[0])
        top_difference = torch.where(inside, difference, sums[1])
        step, delta = sums[0] - top, sums[1] - top_difference
        scale, square_scale = step.exp(), (2 * step).exp()
        mass, mass2 = sums[3] + inside, sums[4] + inside
        _, _, teacher_top, _, _, d1, d2, dd1, dd2, logs, teacher_log_mass = sums
        rebased = [
            top,
            top_difference,
            teacher_top,
            scale * mass,
            square_scale * mass2,
            scale * (d1 + delta * mass),
            square_scale * (d2 + delta * mass2),
            scale * (dd1 + delta * (2 * d1 + delta * mass)),
            square_scale * (dd2 + delta * (2 * d2 + delta * mass2)),
            scale * (logs + step * mass),
            teacher_log_mass,
        ]
        return torch.stack(rebased), torch.where(inside, ids, top_ids)

    def _write_gradient(self, out: Tensor, a: Tensor, b: Tensor | None) -> None:
        student = self._student
        teacher = student if b is None or self._teacher is None else self._teacher
        count, vocab = student.shape
        tiles = triton.cdiv(vocab, GRADIENT_BLOCK)
        with _on(student):
            triton_kernels.write_gradient[(count * tiles,)](
                student, teacher, out, self._tops, self._top_differences, a, a if b is None else b,
                student.stride(0), teacher.stride(0), out.stride(0), vocab, tiles,
                CAP=self._cap or 0.0, TEACHER_CAP=self._teacher_cap or 0.0, SLOPE=b is not None,
                BLOCK=GRADIENT_BLOCK, num_warps=8,
            )  # fmt: skip

    def _spare(self, dtype: torch.dtype) -> Tensor:
        """A dead (C, V) buffer of the dtype: the teacher's, or a new one where there is none."""
        vocab = self._student.shape[1]
        if self._teacher is None:
            return self._student.new_empty(len(self._student), self._student.stride(0), dtype=dtype)[:, :vocab]
        return self._teacher.view(dtype)[:, :vocab]


def _on(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Kernels are launched on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()

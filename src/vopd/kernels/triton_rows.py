"""The row pass with two Triton kernels: each logit is read once for the statistics and once for the gradient."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import triton_kernels
from .row_pass import ChunkLogits, Sums, Support, soft_cap, soft_cap_slope
from .rows import GradientForm

if TYPE_CHECKING:
    from jaxtyping import Float, Int

LANES, WIDTH = 512, 4
"""Columns of a tile of ``row_sums``: one 16-byte load per lane."""

GRADIENT_BLOCK, GRADIENT_WARPS = 4096, 8
"""Columns and warps of a program of ``write_gradient``."""

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter on a CPU: TRITON_INTERPRET=1 was set at import."""


class _Found(NamedTuple):
    """The statistics that ``row_sums`` writes, in its order, (C,) each."""

    top: Float[Tensor, " C"]
    top_d: Float[Tensor, " C"]
    teacher_top: Float[Tensor, " C"]
    mass: Float[Tensor, " C"]
    mass2: Float[Tensor, " C"]
    d1: Float[Tensor, " C"]
    d2: Float[Tensor, " C"]
    dd1: Float[Tensor, " C"]
    dd2: Float[Tensor, " C"]
    logs: Float[Tensor, " C"]
    teacher_log_mass: Float[Tensor, " C"]


class TritonPass:
    """``RowPass`` with Triton kernels, on CUDA tensors or in Triton's interpreter.

    Support columns are set to -inf in the student's buffer to exclude them from the kernel's sums, and restored for the
    gradient. Half-precision gradients are written over the teacher's buffer, which is no longer needed then.
    """

    def __init__(self, logits: ChunkLogits) -> None:
        self._student, self._teacher = logits.student, logits.teacher
        self._cap, self._teacher_cap = logits.student_cap, logits.teacher_cap
        self._holes = logits.may_exclude

    def at(self, ids: Int[Tensor, "C J"]) -> tuple[Float[Tensor, "C J"], Float[Tensor, "C J"] | None]:
        """Return logits at ids, (C, J) each."""
        teacher = None if self._teacher is None else soft_cap(self._teacher.gather(-1, ids), self._teacher_cap)
        return soft_cap(self._student.gather(-1, ids), self._cap), teacher

    def sums(self, support: Support, order: int, diagnostics: bool) -> Sums:
        """Run ``row_sums`` on the tokens outside the support, then include the support in the top token."""
        student = self._student
        self._support_ids = support.ids
        self._support_logits = student.gather(-1, support.ids)
        if support.ids.shape[-1]:
            # The minimum with -inf excludes an entry. A missing entry gets +inf, which changes nothing: its id may be
            # anything, even that of another entry.
            exclude = torch.where(support.present, -torch.inf, torch.inf).to(student.dtype)
            student.scatter_reduce_(-1, support.ids, exclude, "amin")
        found, top_ids = self._row_sums(order, diagnostics, holes=self._holes or support.ids.shape[-1] > 0)
        if support.ids.shape[-1]:
            found, top_ids = self._with_support(found, top_ids, support, order, diagnostics)
        self._tops, self._top_differences = found.top, found.top_d
        teacher = self._teacher is not None
        return Sums(
            top_ids,
            top_logits=found.top,
            mass=found.mass,
            square_mass=found.mass2 if order >= 2 else None,
            difference=found.d1 if teacher and order >= 1 else None,
            square_difference=found.d2 if teacher and order >= 2 else None,
            difference_square=found.dd1 if teacher and diagnostics else None,
            square_difference_square=found.dd2 if teacher and diagnostics else None,
            entropy=-found.logs if diagnostics else None,
            top_difference=found.top_d if teacher else None,
            teacher_top_logits=found.teacher_top if teacher else None,
            teacher_log_mass=found.teacher_log_mass if teacher else None,
        )

    def gradient(self, form: GradientForm, totals: Float[Tensor, " C"], dtype: torch.dtype) -> Float[Tensor, "C V"]:
        """Write the gradient over the student's buffer if it has this dtype, else over the teacher's.

        The columns of ``form.ids`` are summed in the wider dtype: where the student is nearly certain, a p + value is a
        small difference of large numbers, which half precision would lose.
        """
        student, ids = self._student, form.ids
        if self._support_ids.shape[-1]:
            student.scatter_(-1, self._support_ids, self._support_logits)
        a, b = form.a / totals, None if form.b is None else form.b / totals
        logits = soft_cap(student.gather(-1, ids), self._cap)
        slope = 1.0 if self._cap is None else soft_cap_slope(logits, self._cap)
        if dtype == student.dtype:
            self._write_gradient(student, a, b)
            return student.scatter_add_(-1, ids, form.values * slope)
        factor = a.unsqueeze(-1)
        if b is not None and self._teacher is not None:
            teacher = soft_cap(self._teacher.gather(-1, ids), self._teacher_cap)
            factor = factor + b.unsqueeze(-1) * (logits - teacher - self._top_differences.unsqueeze(-1))
        out = self._narrow_gradient(dtype, a, b)
        softmax = (logits - self._tops.unsqueeze(-1)).exp_() * factor
        student.scatter_(-1, ids, softmax * slope).scatter_add_(-1, ids, form.values * slope)
        return out.scatter_(-1, ids, student.gather(-1, ids).to(dtype))

    def _row_sums(self, order: int, diagnostics: bool, holes: bool) -> tuple[_Found, Int[Tensor, " C"]]:
        """Run the kernel; return its statistics and the top tokens, (C,)."""
        student, teacher = self._student, self._teacher
        count, vocab = student.shape
        # Zeros, because statistics that are not requested are not written but are still computed with.
        found = student.new_zeros(len(_Found._fields), count)
        top_ids = torch.empty(count, dtype=torch.int64, device=student.device)
        other = student if teacher is None else teacher
        with _on(student):
            triton_kernels.row_sums[(count,)](
                student, other, found, top_ids, student.stride(0), other.stride(0), count,
                VOCAB=vocab, CAP=self._cap or 0.0, TEACHER_CAP=self._teacher_cap or 0.0,
                TEACHER=teacher is not None, ORDER=order, DIAGNOSTICS=diagnostics, HOLES=holes,
                LANES=LANES, WIDTH=WIDTH, num_warps=max(1, LANES // 32),
            )  # fmt: skip
        return _Found(*found), top_ids

    def _with_support(
        self, found: _Found, top_ids: Int[Tensor, " C"], support: Support, order: int, diagnostics: bool
    ) -> tuple[_Found, Int[Tensor, " C"]]:
        """Recompute the statistics relative to the overall top token, which may be in the support.

        This is the shift described in ``triton_kernels``. If the top token is in the support, that of the kernel
        becomes one of the others.
        """
        known = soft_cap(self._support_logits, self._cap).masked_fill(~support.present, -torch.inf)
        best, column = known.max(dim=-1)
        ids = support.ids.gather(-1, column.unsqueeze(-1))
        inside = torch.ones_like(best, dtype=torch.bool) if support.holds_top else best >= found.top
        difference = found.top_d
        if self._teacher is not None:
            difference = best - soft_cap(self._teacher.gather(-1, ids), self._teacher_cap).squeeze(-1)
        top, top_d = torch.where(inside, best, found.top), torch.where(inside, difference, found.top_d)
        step, delta = found.top - top, found.top_d - top_d
        scale = step.exp()
        mass = found.mass + inside
        moved = found._replace(top=top, top_d=top_d, mass=scale * mass)
        if order >= 1:
            moved = moved._replace(d1=scale * (found.d1 + delta * mass))
        if order >= 2:
            scale2, mass2 = scale.square(), found.mass2 + inside
            moved = moved._replace(mass2=scale2 * mass2, d2=scale2 * (found.d2 + delta * mass2))
            if diagnostics:
                moved = moved._replace(
                    dd1=scale * (found.dd1 + delta * (2 * found.d1 + delta * mass)),
                    dd2=scale2 * (found.dd2 + delta * (2 * found.d2 + delta * mass2)),
                    # If no logit outside the support is above minus infinity, the step is infinite and its scale 0.
                    logs=scale * (found.logs + step.clamp_min(triton_kernels.LOWEST.value) * mass),
                )
        return moved, torch.where(inside, ids.squeeze(-1), top_ids)

    def _narrow_gradient(
        self, dtype: torch.dtype, a: Float[Tensor, " C"], b: Float[Tensor, " C"] | None
    ) -> Float[Tensor, "C V"]:
        """Write a p + b p d' over the teacher's buffer, in a dtype of at most half its width.

        With b, the teacher's logits are still read. The gradient of tile i is written over tile i // 2 or an earlier
        one, so each launch overwrites only what earlier launches have read. The first tile would overwrite itself, so
        it is written to the student's buffer and copied.
        """
        out = self._spare(dtype)
        if b is None or self._teacher is None:
            self._write_gradient(out, a, b)
            return out
        self._write_gradient(self._student, a, b, (0, 1))
        out[:, :GRADIENT_BLOCK] = self._student[:, :GRADIENT_BLOCK]
        for tiles in launches(triton.cdiv(out.shape[1], GRADIENT_BLOCK)):
            self._write_gradient(out, a, b, tiles)
        return out

    def _write_gradient(
        self,
        out: Float[Tensor, "C V"],
        a: Float[Tensor, " C"],
        b: Float[Tensor, " C"] | None,
        tiles: tuple[int, int] | None = None,
    ) -> None:
        """Run ``write_gradient`` on a half-open range of tiles, by default on all."""
        student = self._student
        teacher = student if b is None or self._teacher is None else self._teacher
        count, vocab = student.shape
        first, end = tiles or (0, triton.cdiv(vocab, GRADIENT_BLOCK))
        with _on(student):
            triton_kernels.write_gradient[(count * (end - first),)](
                student, teacher, out, self._tops, self._top_differences, a, a if b is None else b,
                first, end - first, student.stride(0), teacher.stride(0), out.stride(0),
                VOCAB=vocab, CAP=self._cap or 0.0, TEACHER_CAP=self._teacher_cap or 0.0, SLOPE=b is not None,
                BLOCK=GRADIENT_BLOCK, num_warps=GRADIENT_WARPS,
            )  # fmt: skip

    def _spare(self, dtype: torch.dtype) -> Float[Tensor, "C V"]:
        """Return a free (C, V) buffer of the dtype: the teacher's, or a new one without a teacher."""
        vocab = self._student.shape[1]
        if self._teacher is None:
            return self._student.new_empty(len(self._student), self._student.stride(0), dtype=dtype)[:, :vocab]
        return self._teacher.view(dtype)[:, :vocab]


def launches(tiles: int) -> list[tuple[int, int]]:
    """Split the tiles of a row after the first into launches, each up to twice the index of its first tile."""
    return [(1 << i, min(2 << i, tiles)) for i in range((tiles - 1).bit_length())]


def _on(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Context in which the tensor's device is current: kernels are launched on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()

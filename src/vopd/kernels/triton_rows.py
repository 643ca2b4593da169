"""The row pass in two Triton kernels: every logit is read once for the statistics and once for the gradient."""

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
"""Columns of a tile of ``row_sums``: a 16-byte load for each lane."""

GRADIENT_BLOCK, GRADIENT_WARPS = 4096, 8
"""Columns and warps of a program of ``write_gradient``."""

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter, on a CPU: TRITON_INTERPRET=1 was set when this was imported."""


class _Found(NamedTuple):
    """What ``row_sums`` writes, in its order, (C,) each."""

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
    """``RowPass`` in Triton kernels, on CUDA tensors, or in Triton's interpreter.

    Support columns leave the kernel's sums by being set to -inf in the student's buffer, and are put back for the
    gradient. Half-precision gradients are written over the teacher's buffer, which is dead by then.
    """

    def __init__(self, logits: ChunkLogits) -> None:
        self._student, self._teacher = logits.student, logits.teacher
        self._cap, self._teacher_cap = logits.student_cap, logits.teacher_cap
        self._holes = logits.may_exclude

    def at(self, ids: Int[Tensor, "C J"]) -> tuple[Float[Tensor, "C J"], Float[Tensor, "C J"] | None]:
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
        """Over the student's buffer in its own dtype, else over the teacher's.

        The columns of ``form.ids`` are summed in the wider dtype: where the student is nearly certain, a p + value is
        a small difference of large numbers that half precision would lose.
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
        """What the kernel finds, and the top tokens, (C,)."""
        student, teacher = self._student, self._teacher
        count, vocab = student.shape
        # Zeros, since what is not asked for is not written and must not be moved about as garbage.
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
        """The same about the top token of all, which may be in the support: the rule of ``triton_kernels`` once more.

        Where it is, the kernel's own top token becomes one of the others.
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
                    # Without a logit above minus infinity outside the support the step is infinite, and its scale 0.
                    logs=scale * (found.logs + step.clamp_min(triton_kernels.LOWEST.value) * mass),
                )
        return moved, torch.where(inside, ids.squeeze(-1), top_ids)

    def _narrow_gradient(
        self, dtype: torch.dtype, a: Float[Tensor, " C"], b: Float[Tensor, " C"] | None
    ) -> Float[Tensor, "C V"]:
        """a p + b p d' over the teacher's buffer, in a dtype of half its width or less.

        With b the teacher is still to be read. The gradient of tile i lies over tile i // 2 or one before it, so each
        launch is over what earlier ones have read; the first tile, over itself, goes by the student's buffer.
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
        """Runs ``write_gradient`` over the tiles from one number to before another, all by default."""
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
        """A dead (C, V) buffer of the dtype: the teacher's, or a new one where there is none."""
        vocab = self._student.shape[1]
        if self._teacher is None:
            return self._student.new_empty(len(self._student), self._student.stride(0), dtype=dtype)[:, :vocab]
        return self._teacher.view(dtype)[:, :vocab]


def launches(tiles: int) -> list[tuple[int, int]]:
    """Tiles of a row after the first, in launches each of which ends at twice its first tile at most."""
    return [(1 << i, min(2 << i, tiles)) for i in range((tiles - 1).bit_length())]


def _on(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Kernels are launched on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()

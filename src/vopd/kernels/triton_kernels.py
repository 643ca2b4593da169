"""The two row kernels: one reads a row of both models' logits once, one writes a row of the gradient.

Both know only softmax statistics and the form a p + b p d'. One program handles a row. Each of its lanes accumulates
the statistics of every ``LANES``-th group of ``WIDTH`` columns, so no data crosses lanes until the end of the row. All
statistics are centred on a top token: first the lane's running one, at the end that of the row. When the top token
changes, the sums are shifted from the old one to the new one, and the old one is added to the other tokens:

    sum e' = c (sum e + 1)          c = exp(z_old - z_new)
    sum e' d' = c (sum e d + delta (sum e + 1))          delta = d_old - d_new

Centring matters: relative to any other token the sums lose all digits when the student is certain.
"""

# mypy: allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-1e30)
"""Replaces a logit of minus infinity: finite, and its products with sums stay finite, too."""

NO_TOKEN = tl.constexpr(2**31 - 1)


@triton.jit
def _soft_cap(logits, CAP: tl.constexpr):
    """CAP tanh(logits / CAP); the logits unchanged for CAP = 0. Minus infinity is kept: it marks a missing column."""
    if CAP > 0:
        decay = tl.exp(tl.abs(logits) * (-2 / CAP))
        size = CAP * (1 - decay) / (1 + decay)
        capped = tl.where(logits < 0, -size, size)
        logits = tl.where(logits == float("-inf"), logits, capped)
    return logits


@triton.jit
def _load(row, columns, VOCAB: tl.constexpr, TAIL: tl.constexpr, BEYOND: tl.constexpr = float("-inf")):
    """Load the logits of the columns; BEYOND for columns outside the vocabulary. Unmasked loads are 128 bits wide."""
    if TAIL:
        logits = tl.load(row + columns, mask=columns < VOCAB, other=BEYOND)
    else:
        logits = tl.load(row + columns)
    return logits


@triton.jit
def _fold(
    student, teacher, columns,
    top, top_id, top_d, mass, mass2, d1, d2, dd1, dd2, logs, teacher_top, teacher_mass,
    CAP: tl.constexpr, TEACHER_CAP: tl.constexpr,
    TEACHER: tl.constexpr, ORDER: tl.constexpr, DIAGNOSTICS: tl.constexpr, HOLES: tl.constexpr,
):  # fmt: skip
    """Add a tile of logits, (LANES, WIDTH), to the lanes' statistics, (LANES,) each (named in ``row_sums``).

    HOLES: some of the student's logits may be minus infinity and are ignored.
    """
    z = _soft_cap(student, CAP)
    if HOLES:
        absent = student == float("-inf")
        z = tl.where(absent, LOWEST, z)
    tile_top = tl.max(z, 1)
    moved = tile_top > top
    tile_id = tl.min(tl.where(z == tile_top[:, None], columns, NO_TOKEN), 1)
    new_top = tl.where(moved, tile_top, top)
    top_id = tl.where(moved, tile_id, top_id)
    other = columns != top_id[:, None]
    step = top - new_top
    scale = tl.exp(step)
    old_top = tl.where(moved, scale, 0.0)  # the mass of the old top token as one of the others
    x = z - new_top[:, None]
    e = tl.where(other, tl.exp(x), 0.0)
    if DIAGNOSTICS:
        logs = scale * (logs + step * mass) + old_top * step + tl.sum(e * x, 1)
    if TEACHER:
        t = _soft_cap(teacher, TEACHER_CAP)
        d = z - t
        if HOLES:
            d = tl.where(absent, 0.0, d)
        new_d = tl.where(moved, tl.sum(tl.where(other, 0.0, d), 1), top_d)
        if ORDER >= 1:
            delta = top_d - new_d
            w = d - new_d[:, None]
            ew = e * w
            if DIAGNOSTICS:
                dd1 = scale * (dd1 + delta * (2 * d1 + delta * mass)) + old_top * delta * delta + tl.sum(ew * w, 1)
                dd2 = scale * scale * (dd2 + delta * (2 * d2 + delta * mass2)) + tl.sum(ew * ew, 1)
                dd2 += old_top * old_top * delta * delta
            d1 = scale * (d1 + delta * mass) + old_top * delta + tl.sum(ew, 1)
            if ORDER >= 2:
                d2 = scale * scale * (d2 + delta * mass2) + old_top * old_top * delta + tl.sum(e * ew, 1)
        top_d = new_d
        new_teacher_top = tl.maximum(teacher_top, tl.max(t, 1))
        teacher_mass = teacher_mass * tl.exp(teacher_top - new_teacher_top)
        teacher_mass += tl.sum(tl.exp(t - new_teacher_top[:, None]), 1)
        teacher_top = new_teacher_top
    if ORDER >= 2:
        mass2 = scale * scale * mass2 + old_top * old_top + tl.sum(e * e, 1)
    mass = scale * mass + old_top + tl.sum(e, 1)
    return new_top, top_id, top_d, mass, mass2, d1, d2, dd1, dd2, logs, teacher_top, teacher_mass


@triton.jit
def _join(
    out, out_stride,
    top, top_id, top_d, mass, mass2, d1, d2, dd1, dd2, logs, teacher_top, teacher_mass,
    TEACHER: tl.constexpr, ORDER: tl.constexpr, DIAGNOSTICS: tl.constexpr,
):  # fmt: skip
    """Combine the lanes' statistics and write those of the row, except the top token's id, which is returned.

    If no logit is above minus infinity (NaN is not), the top logit is minus infinity and the id is 0.
    """
    row_top = tl.max(top, 0)
    row_id = tl.min(tl.where(top == row_top, top_id, NO_TOKEN), 0)
    is_row_top = top_id == row_id
    step = top - row_top
    scale = tl.exp(step)
    joining = tl.where(is_row_top, 0.0, 1.0)  # every other lane's top token is one of the others
    found = row_id != NO_TOKEN
    tl.store(out, tl.where(found, row_top, float("-inf")))
    tl.store(out + 3 * out_stride, tl.sum(scale * (mass + joining), 0))
    if ORDER >= 2:
        tl.store(out + 4 * out_stride, tl.sum(scale * scale * (mass2 + joining), 0))
    if TEACHER:
        row_d = tl.sum(tl.where(is_row_top, top_d, 0.0), 0)
        delta = top_d - row_d
        tl.store(out + out_stride, row_d)
        row_teacher_top = tl.max(teacher_top, 0)
        teacher_total = tl.sum(teacher_mass * tl.exp(teacher_top - row_teacher_top), 0)
        tl.store(out + 2 * out_stride, row_teacher_top)
        tl.store(out + 10 * out_stride, tl.log(teacher_total))
        if ORDER >= 1:
            tl.store(out + 5 * out_stride, tl.sum(scale * (d1 + delta * (mass + joining)), 0))
        if ORDER >= 2:
            tl.store(out + 6 * out_stride, tl.sum(scale * scale * (d2 + delta * (mass2 + joining)), 0))
        if DIAGNOSTICS:
            dd1 += delta * (2 * d1 + delta * (mass + joining))
            dd2 += delta * (2 * d2 + delta * (mass2 + joining))
            tl.store(out + 7 * out_stride, tl.sum(scale * dd1, 0))
            tl.store(out + 8 * out_stride, tl.sum(scale * scale * dd2, 0))
    if DIAGNOSTICS:
        tl.store(out + 9 * out_stride, tl.sum(scale * (logs + step * (mass + joining)), 0))
    return tl.where(found, row_id, 0)


# The number of rows, sums_stride, differs in the last chunk of a batch and must not cause another compilation.
@triton.jit(do_not_specialize=["sums_stride"])
def row_sums(
    student, teacher, sums, top_ids, stride, teacher_stride, sums_stride, VOCAB: tl.constexpr,
    CAP: tl.constexpr, TEACHER_CAP: tl.constexpr,
    TEACHER: tl.constexpr, ORDER: tl.constexpr, DIAGNOSTICS: tl.constexpr, HOLES: tl.constexpr,
    LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Compute the statistics of a row of logits in one pass, relative to its top token; program i handles row i.

    With e = exp(z - z_top), d = z - t, d' = d - d_top, and sums over all tokens but the top one, the rows of ``sums``
    are: 0 z_top, 1 d_top, 2 t_max, 3 sum e, 4 sum e^2, 5 sum e d', 6 sum e^2 d', 7 sum e d'^2, 8 sum e^2 d'^2,
    9 sum e log e, 10 log sum exp(t - t_max). Rows that TEACHER, ORDER and DIAGNOSTICS exclude are not written.
    If no logit is above minus infinity, z_top is minus infinity, the top token is 0, and the sums are undefined: NaN if
    a logit is NaN.
    """
    row = tl.program_id(0).to(tl.int64)
    student += row * stride
    teacher += row * teacher_stride
    dtype = student.dtype.element_ty
    TILE: tl.constexpr = LANES * WIDTH
    lanes = tl.arange(0, LANES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    zero = tl.zeros([LANES], dtype)
    top = tl.full([LANES], LOWEST, dtype)
    top_id = tl.full([LANES], NO_TOKEN, tl.int32)
    top_d, mass, mass2, d1, d2, dd1, dd2, logs, teacher_mass = zero, zero, zero, zero, zero, zero, zero, zero, zero
    teacher_top = top
    FULL: tl.constexpr = VOCAB // (2 * TILE) * (2 * TILE)
    for start in range(0, FULL, 2 * TILE):  # two tiles at a time, so that both loads start before either is used
        columns = start + lanes
        z0 = _load(student, columns, VOCAB, False)
        z1 = _load(student, columns + TILE, VOCAB, False)
        t0, t1 = z0, z1
        if TEACHER:
            t0 = _load(teacher, columns, VOCAB, False)
            t1 = _load(teacher, columns + TILE, VOCAB, False)
        top, top_id, top_d, mass, mass2, d1, d2, dd1, dd2, logs, teacher_top, teacher_mass = _fold(
            z0, t0, columns,
            top, top_id, top_d, mass, mass2, d1, d2, dd1, dd2, logs, teacher_top, teacher_mass,
            CAP, TEACHER_CAP, TEACHER, ORDER, DIAGNOSTICS, HOLES,
        )  # fmt: skip
        top, top_id, top_d, mass, mass2, d1, d2, dd1, dd2, logs, teacher_top, teacher_mass = _fold(
            z1, t1, columns + TILE,
            top, top_id, top_d, mass, mass2, d1, d2, dd1, dd2, logs, teacher_top, teacher_mass,
            CAP, TEACHER_CAP, TEACHER, ORDER, DIAGNOSTICS, HOLES,
        )  # fmt: skip
    for start in range(FULL, VOCAB, TILE):
        columns = start + lanes
        z0 = _load(student, columns, VOCAB, True)
        t0 = z0
        if TEACHER:
            t0 = _load(teacher, columns, VOCAB, True)
        top, top_id, top_d, mass, mass2, d1, d2, dd1, dd2, logs, teacher_top, teacher_mass = _fold(
            z0, t0, columns,
            top, top_id, top_d, mass, mass2, d1, d2, dd1, dd2, logs, teacher_top, teacher_mass,
            CAP, TEACHER_CAP, TEACHER, ORDER, DIAGNOSTICS, True,
        )  # fmt: skip
    row_id = _join(
        sums + row, sums_stride,
        top, top_id, top_d, mass, mass2, d1, d2, dd1, dd2, logs, teacher_top, teacher_mass,
        TEACHER, ORDER, DIAGNOSTICS,
    )  # fmt: skip
    tl.store(top_ids + row, row_id.to(tl.int64))


@triton.jit
def _gradient_tile(
    student, teacher, out, columns, top, top_d, a, b, VOCAB: tl.constexpr,
    CAP: tl.constexpr, TEACHER_CAP: tl.constexpr, SLOPE: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    z = _soft_cap(_load(student, columns, VOCAB, TAIL, 0.0), CAP)
    factor = a
    if SLOPE:
        t = _soft_cap(_load(teacher, columns, VOCAB, TAIL, 0.0), TEACHER_CAP)
        factor = a + b * (z - t - top_d)
    gradient = tl.exp(z - top) * factor
    if CAP > 0:
        gradient *= 1 - z * z * (1 / (CAP * CAP))
    gradient = gradient.to(out.dtype.element_ty)
    if TAIL:
        tl.store(out + columns, gradient, mask=columns < VOCAB)
    else:
        tl.store(out + columns, gradient)


# Whether rows of statistics are aligned to 16 bytes depends on the number of rows; only one number of each is read.
@triton.jit(do_not_specialize=["first", "tiles", "tops", "top_differences", "a", "b"])
def write_gradient(
    student, teacher, out, tops, top_differences, a, b, first, tiles, stride, teacher_stride, out_stride,
    VOCAB: tl.constexpr, CAP: tl.constexpr, TEACHER_CAP: tl.constexpr, SLOPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write e (a + b d') times the slope 1 - (z / CAP)^2 of a soft cap, for ``tiles`` tiles of a row from ``first``.

    A program handles one tile. ``a`` and ``b`` have one number per row; ``b`` and the teacher are read with SLOPE only.
    ``out`` may be ``student``, or memory that no program of this launch reads.
    """
    row = (tl.program_id(0) // tiles).to(tl.int64)
    start = (first + tl.program_id(0) % tiles) * BLOCK
    columns = start + tl.arange(0, BLOCK)
    student += row * stride
    teacher += row * teacher_stride
    out += row * out_stride
    top = tl.load(tops + row)
    row_a = tl.load(a + row)
    top_d, row_b = row_a, row_a
    if SLOPE:
        top_d = tl.load(top_differences + row)
        row_b = tl.load(b + row)
    if start + BLOCK <= VOCAB:
        _gradient_tile(student, teacher, out, columns, top, top_d, row_a, row_b, VOCAB, CAP, TEACHER_CAP, SLOPE, False)
    else:
        _gradient_tile(student, teacher, out, columns, top, top_d, row_a, row_b, VOCAB, CAP, TEACHER_CAP, SLOPE, True)

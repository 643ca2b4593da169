"""The ceilings of this device, and the matrix products of the loss one by one, in ms.

    python benchmarks/gpu/products.py --json products.json

All products take bf16 and give float32, as those of the loss do. Redesigns of the loss stand or fall with the numbers
of dH split over the vocabulary and of dW with more rows at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from timing import DEVICE, arguments, milliseconds
from torch import Tensor

from vopd.kernels.heads import multiply


def normal(*size: int) -> Tensor:
    return torch.randn(*size, device=DEVICE).bfloat16()


def empty(*size: int) -> Tensor:
    return torch.empty(*size, device=DEVICE, dtype=torch.float32)


def ceilings(dry: bool) -> dict[str, float]:
    """Bytes read and written by a large copy, and operations of a large product, per second."""
    size = 1 << (16 if dry else 30)
    source, side = torch.randint(0, 99, (size,), dtype=torch.uint8, device=DEVICE), 64 if dry else 8192
    target, left, right = torch.empty_like(source), normal(side, side), normal(side, side)
    return {
        "copy_tb_per_s": 2 * size / milliseconds(lambda: target.copy_(source)) / 1e9,
        "product_tflop_per_s": 2 * side**3 / milliseconds(lambda: left @ right) / 1e9,
    }


def logits(rows: int, width: int, vocab: int) -> Callable[[], object]:
    """Logits of `rows` tokens."""
    hidden, head, out = normal(rows, width), normal(vocab, width), empty(rows, vocab)
    return lambda: multiply(hidden, head.T, out)


def hidden_gradient(rows: int, width: int, vocab: int, splits: int) -> Callable[[], object]:
    """dH = G W; with splits, as the sum of products over parts of the vocabulary."""
    gradient, head = normal(rows, vocab), normal(vocab, width)
    if splits == 1:
        out = empty(rows, width)
        return lambda: multiply(gradient, head, out)
    part = vocab // splits
    left = gradient[:, : part * splits].unflatten(1, (splits, part)).transpose(0, 1)
    right = head[: part * splits].unflatten(0, (splits, part))

    def split() -> Tensor:
        found = torch.bmm(left, right, out_dtype=torch.float32) if DEVICE == "cuda" else left.float() @ right.float()
        return found.sum(0)

    return split


def head_gradient(rows: int, width: int, vocab: int) -> Callable[[], object]:
    """dW += G' H of `rows` tokens."""
    gradient, hidden, out = normal(rows, vocab), normal(rows, width), empty(vocab, width).zero_()
    return lambda: multiply(gradient.T, hidden, out, accumulate=True)


def table(width: int, teacher_width: int, vocab: int, chunk: int) -> dict[str, float]:
    """ms of each product; `chunk` rows where the name says no other number."""
    calls: dict[str, Callable[[], Callable[[], object]]] = {
        f"student logits, {chunk} rows": lambda: logits(chunk, width, vocab),
        f"student logits, {chunk // 2} rows": lambda: logits(chunk // 2, width, vocab),
        f"teacher logits, {chunk} rows": lambda: logits(chunk, teacher_width, vocab),
        **{
            f"dH, {rows} rows, {splits} parts": lambda r=rows, s=splits: hidden_gradient(r, width, vocab, s)
            for rows in (chunk // 2, chunk)
            for splits in (1, 2, 4)
        },
        **{f"dW, {rows} rows": lambda r=rows: head_gradient(r, width, vocab) for rows in (chunk, 2 * chunk, 4 * chunk)},
    }
    return {name: milliseconds(make()) for name, make in calls.items()}  # one set of inputs at a time


def main() -> None:
    """Measure and write."""
    given = arguments(__doc__)
    shapes = [(16, 32, 300, 8)] if given.dry_run else [(2048, 4096, 151936, 1024), (2048, 4096, 50257, 1024)]
    found: dict[str, object] = {"ceilings": ceilings(given.dry_run)}
    found |= {f"width {w}, teacher {t}, vocabulary {v}": table(w, t, v, c) for w, t, v, c in shapes}
    Path(given.json).write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

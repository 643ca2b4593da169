"""Rows that are no distribution, by both backends: the loss must not be finite, and no kernel may read beyond a row.

    python benchmarks/gpu/not_finite.py --json not_finite.json

Every estimator with a row of NaN, and with a row of minus infinity. On a GPU a wrong index is a device assert, which
ends this process; what was found before it is in the output.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from timing import DEVICE, arguments

import vopd

ROWS, WIDTH, VOCAB = 8, 64, 5000


def outcome(estimator: str, backend: str, spoilt: float) -> str:
    """ "loss NaN" or the like; the row 3 of the student's states, or its bias, is `spoilt`."""
    generator = torch.Generator().manual_seed(0)
    hidden, teacher, head = (
        torch.randn(*size, generator=generator).to(DEVICE, torch.bfloat16)
        for size in ((ROWS, WIDTH), (ROWS, WIDTH), (VOCAB, WIDTH))
    )
    bias = torch.zeros(VOCAB, device=DEVICE)
    if spoilt != spoilt:
        hidden[3] = spoilt
    else:
        bias.fill_(spoilt)
    hidden.requires_grad_()
    out = vopd.linear_distillation_loss(
        hidden, head, teacher, head, torch.arange(ROWS, device=DEVICE), student_bias=bias, estimator=estimator,
        top_k=20 if vopd.ESTIMATORS[estimator].needs_top_k else None, backend=backend,
    )  # fmt: skip
    gradient = torch.autograd.grad(out.loss, hidden)[0]
    finite = bool(out.loss.isfinite())  # waits for the device
    return f"loss {out.loss.item()}, finite gradient rows {int(gradient.isfinite().all(-1).sum())}" + " WRONG" * finite


def main() -> None:
    """Try them all."""
    given = arguments(__doc__)
    backends = ("torch", "triton") if DEVICE == "cuda" else ("torch",)
    found = {}
    for backend in backends:
        for name, spoilt in ("NaN row", float("nan")), ("minus infinity", -float("inf")):
            for estimator in vopd.ESTIMATORS:
                found[f"{backend}, {name}, {estimator}"] = outcome(estimator, backend, spoilt)
                print(backend, name, estimator, found[f"{backend}, {name}, {estimator}"], flush=True)
    Path(given.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

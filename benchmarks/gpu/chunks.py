"""Where the time of one call of the fused loss goes, by kernel, and how it depends on the rows of a chunk.

python benchmarks/gpu/chunks.py --json chunks.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from contestants import Inputs
from loss import SHAPES, make_inputs
from timing import DEVICE, arguments, milliseconds

import vopd

KERNELS = 25


def call(inputs: Inputs, chunk_size: int | None = None, estimator: str = "vopd") -> None:
    """Loss and gradients."""
    loss = vopd.linear_distillation_loss(
        inputs.hidden, inputs.head, inputs.teacher_hidden, inputs.teacher_head, inputs.ids,
        estimator=estimator, chunk_size=chunk_size,
    ).loss  # fmt: skip
    torch.autograd.grad(loss, [part for part in (inputs.hidden, inputs.head) if part.requires_grad])


def profile(inputs: Inputs) -> list[dict[str, Any]]:
    """The kernels of one call with the most device time, in ms, and how often each ran."""
    call(inputs)
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] * (DEVICE == "cuda")
    with torch.profiler.profile(activities=activities) as profiler:
        call(inputs)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
    time = "self_device_time_total" if DEVICE == "cuda" else "self_cpu_time_total"
    events = [
        event
        for event in profiler.key_averages()
        if DEVICE == "cpu" or event.device_type == torch.autograd.DeviceType.CUDA
    ]
    events.sort(key=lambda event: -getattr(event, time))
    return [
        {"kernel": event.key[:120], "count": event.count, "ms": round(getattr(event, time) / 1000, 3)}
        for event in events[:KERNELS]
    ]


def main() -> None:
    """Both kinds of head."""
    given = arguments(__doc__)
    shape, chunks = (SHAPES["dry"], (8, 16)) if given.dry_run else (SHAPES["reference"], (256, 384, 512, 1024, 2048))
    found: dict[str, Any] = {}
    for head in ("trainable", "frozen"):
        inputs = make_inputs(shape, DEVICE, torch.bfloat16, head == "trainable")
        found[head] = {
            "kernels": profile(inputs),
            "ms by rows of a chunk": {size: milliseconds(lambda i=inputs, c=size: call(i, c), 5) for size in chunks},
            "ms of other estimators, default chunk": {
                name: milliseconds(lambda i=inputs, e=name: call(i, None, e), 5)
                for name in ("opd", "vopd", "vopd_optimal", "full_rkl")
            },
        }
        Path(given.json).write_text(json.dumps(found, indent=1))
    for head, rows in found.items():
        print(head, *rows["kernels"], {name: rows[name] for name in rows if name != "kernels"}, sep="\n")


if __name__ == "__main__":
    main()

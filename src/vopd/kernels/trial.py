"""Whether the Triton kernels compute on a device what plain torch computes, asked once before they are trusted.

A GPU may be too old for them, a C compiler missing, or a driver and a compiler not agree: a run is then better slow
than ended, and better ended than wrong.
"""

from __future__ import annotations

import functools
from dataclasses import fields

import torch
from torch import Tensor

from .heads import BUFFER_ALIGNMENT
from .row_pass import ChunkLogits, MakePass, Support
from .rows import GradientForm
from .torch_rows import TorchPass

_ROWS, _VOCAB = 3, 5000
"""More columns than a whole tile has, and no whole number of tiles."""

_TOLERANCE = 1e-3
"""Relative; float32 gives about 1e-6."""


@functools.cache
def trouble(device: torch.device) -> str | None:
    """Why the Triton kernels are not to be used on the device, one line; None where they are right."""
    try:
        from .triton_rows import TritonPass

        ours, exact = _results(TritonPass, device), _results(TorchPass, device)
    except Exception as error:  # whatever Triton, a compiler or a driver raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"{type(error).__name__}: {first[:200]}"
    wrong = [name for name, value in exact.items() if not _close(ours[name], value)]
    return f"their {wrong[0]} differs from torch's" if wrong else None


def _close(ours: Tensor, exact: Tensor) -> bool:
    ours, exact = ours.double(), exact.double()
    return torch.allclose(ours, exact, rtol=_TOLERANCE, atol=_TOLERANCE * float(exact.abs().max()))


def _results(make_pass: MakePass, device: torch.device) -> dict[str, Tensor]:
    """All statistics of a few rows, and a gradient of every kind of term."""
    generator = torch.Generator().manual_seed(0)  # of its own: the run's draws stay what they are

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device)

    def logits() -> Tensor:
        stride = -(-_VOCAB // BUFFER_ALIGNMENT) * BUFFER_ALIGNMENT
        return normal(_ROWS, stride).mul_(4)[:, :_VOCAB]

    row_pass = make_pass(ChunkLogits(logits(), logits(), student_cap=30.0, teacher_cap=20.0))
    ids = torch.tensor([[0, 4999], [4095, 17], [4998, 4096]], device=device)
    row_pass.at(ids)
    sums = row_pass.sums(Support(ids, torch.ones_like(ids, dtype=torch.bool)), 2, diagnostics=True)
    form = GradientForm(a=normal(_ROWS), ids=ids, values=normal(_ROWS, 2), b=normal(_ROWS))
    gradient = row_pass.gradient(form, sums.mass + 1, torch.float32)
    found = {entry.name: getattr(sums, entry.name) for entry in fields(sums)}
    return {name: value for name, value in {**found, "gradient": gradient}.items() if value is not None}

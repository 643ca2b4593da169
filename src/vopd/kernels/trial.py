"""Checks once per device that the Triton kernels compute the same as plain torch, before they are used.

The GPU may be too old, a C compiler missing, or driver and compiler incompatible. The loss then runs in plain torch: a
slow run is better than a failed one, and a failed one better than a wrong one.
"""

from __future__ import annotations

import functools
from dataclasses import fields

import torch
from torch import Tensor

from .heads import Head
from .logits import LinearHeads
from .row_pass import MakePass, Support
from .rows import GradientForm
from .torch_rows import TorchPass

_ROWS, _VOCAB, _WIDTH = 4, 5000, 64
"""More columns than one tile, and not a whole number of tiles."""

_TOLERANCE = 1e-3
"""Relative; float32 gives about 1e-6."""

_HALF_TOLERANCE = 1e-2
"""For gradients computed in bfloat16, where each number is rounded by up to 1/512; the error is about 3e-3."""


@functools.cache
def trouble(device: torch.device) -> str | None:
    """Return in one line why the Triton kernels cannot be used on the device; None if they are correct.

    They are checked on hidden states and heads in float32 and in bfloat16. On CUDA the products and the gradient that
    the kernels write for them are then in bfloat16, too.
    """
    try:
        # The first call of the loss may be under autocast, which would change the dtypes.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return _difference(device)
    except Exception as error:  # Triton, a compiler or a driver may raise anything
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"{type(error).__name__}: {first[:200]}"


def _difference(device: torch.device) -> str | None:
    """Return what differs from plain torch with float32 products; None if nothing does."""
    from .triton_rows import TritonPass

    exact = _results(TorchPass, device, torch.float32)
    for dtype, tolerance in (torch.float32, _TOLERANCE), (torch.bfloat16, _HALF_TOLERANCE):
        ours = _results(TritonPass, device, dtype)
        for name, value in exact.items():
            if not _close(ours[name], value, tolerance if name.startswith("gradient") else _TOLERANCE):
                return f"their {name} differs from torch's for {str(dtype).removeprefix('torch.')}"
    return None


def _close(ours: Tensor, exact: Tensor, tolerance: float) -> bool:
    ours, exact = ours.double(), exact.double()
    return torch.allclose(ours, exact, rtol=tolerance, atol=tolerance * float(exact.abs().max()))


def _results(make_pass: MakePass, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Compute all statistics of a few rows, and the gradients of every type of term in the inputs of the loss.

    The numbers are the same in every dtype. There are two chunks; the second uses a part of the buffers, and the first
    has a slope term.
    """
    generator = torch.Generator().manual_seed(0)  # a separate one, so that the run's random numbers do not change

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device, torch.bfloat16).to(dtype)

    def head(softcap: float) -> Head:
        return Head(normal(_VOCAB, _WIDTH).div_(2), normal(_VOCAB), softcap=softcap)

    source = LinearHeads(
        normal(_ROWS, _WIDTH), head(30.0), normal(_ROWS, _WIDTH), head(20.0),
        vocab_size=_VOCAB, temperature=1.0, wants=(True, True, True),
    )  # fmt: skip
    known = torch.tensor([[0, 4999], [4095, 17], [4998, 4096], [3, 4097]], device=device)
    a, b, values = normal(_ROWS).float(), normal(_ROWS).float(), normal(_ROWS, 2).float()
    found = []
    for rows, slope in (torch.arange(3, device=device), True), (torch.tensor([3], device=device), False):
        row_pass, ids = make_pass(source.logits(rows, with_teacher=True)), known[rows]
        row_pass.at(ids)
        sums = row_pass.sums(Support(ids, torch.ones_like(ids, dtype=torch.bool)), 2, diagnostics=True)
        form = GradientForm(a=a[rows], ids=ids, values=values[rows], b=b[rows] if slope else None)
        source.accumulate(rows, row_pass.gradient(form, sums.mass + 1, source.gradient_dtype))
        found.append(sums)
    statistics = {entry.name: torch.cat([getattr(sums, entry.name) for sums in found]) for entry in fields(found[0])}
    places = ("hidden states", "head", "bias")
    gradients = zip(places, source.gradients())
    return statistics | {f"gradient in the {place}": value for place, value in gradients if value is not None}

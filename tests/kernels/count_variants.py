"""Prints how many variants of each row kernel Triton compiles for chunks of several numbers of rows, as JSON.

Run by ``test_compiled`` in a process of its own: what the kernels are launched with is bound to their parameters as on
a GPU, and nothing is compiled or run.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from vopd.kernels import triton_kernels
from vopd.kernels.row_pass import ChunkLogits, Support
from vopd.kernels.rows import GradientForm
from vopd.kernels.triton_rows import TritonPass

ROWS = (1, 2, 3, 15, 16, 33, 128)
VOCAB, STRIDE = 5000, 5120


class Bound:
    """Takes a kernel's launches and keeps what Triton would compile for them."""

    def __init__(self, kernel: Any) -> None:
        backend = make_backend(GPUTarget("cuda", 90, 32))
        self._bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        self.variants: set[str] = set()

    def __getitem__(self, grid: Any) -> Any:
        return self._launch

    def _launch(self, *arguments: Any, **constants: Any) -> None:
        self.variants.add(str(self._bind(*arguments, **constants)[1]))


def variants(slope: bool, dtype: torch.dtype) -> dict[str, int]:
    """Of both kernels, over chunks that are parts of the same two buffers."""
    kernels = {name: Bound(getattr(triton_kernels, name)) for name in ("row_sums", "write_gradient")}
    originals = {name: getattr(triton_kernels, name) for name in kernels}
    buffers = torch.zeros(2, max(ROWS), STRIDE)
    for name, kernel in kernels.items():
        setattr(triton_kernels, name, kernel)
    for count in ROWS:
        row_pass = TritonPass(ChunkLogits(*(buffer[:count, :VOCAB] for buffer in buffers)))
        nothing = torch.empty(count, 0, dtype=torch.long)
        sums = row_pass.sums(Support(nothing, nothing.bool()), 1, False)
        ones, ids = torch.ones(count), torch.zeros(count, 1, dtype=torch.long)
        form = GradientForm(a=ones, b=ones if slope else None, ids=ids, values=ones.unsqueeze(-1))
        row_pass.gradient(form, 1 + sums.mass, dtype)
    for name, kernel in originals.items():
        setattr(triton_kernels, name, kernel)
    return {name: len(kernel.variants) for name, kernel in kernels.items()}


if __name__ == "__main__":
    found = [variants(slope, dtype) for slope in (False, True) for dtype in (torch.float32, torch.bfloat16)]
    print(json.dumps(found))

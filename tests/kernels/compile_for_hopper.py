"""Compiles every variant of the row kernels for sm_90 ahead of time and prints what became of it, as JSON.

Run by ``test_compiled`` in a process of its own: a process that interprets kernels cannot compile them. Needs no GPU:
``python tests/kernels/compile_for_hopper.py``.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vopd.kernels import triton_kernels, triton_rows

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
VOCAB = 151936
ALIGNED = ("student", "teacher", "out", "sums", "stride", "teacher_stride", "out_stride")


def compile_kernel(kernel: Any, constants: dict[str, Any], warps: int, **dtypes: str) -> dict[str, Any]:
    """Registers and spills as the assembler has them, widths of global loads and stores, and the main loop's moves."""
    names = kernel.arg_names
    numbers = [name for name in names if name.endswith("stride") or name in ("first", "tiles")]
    types = {**dict.fromkeys(numbers, "i32"), **{name: f"*{dtype}" for name, dtype in dtypes.items()}}
    source = ASTSource(
        kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs=constants,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in ALIGNED if name in names},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([TOOLS / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found is not None, usage
    registers, stack, local = map(int, found.groups())
    ptx = compiled.asm["ptx"]
    loops = re.findall(r"scf\.for(.*?)scf\.yield", compiled.asm["ttgir"], re.DOTALL)
    return {
        "registers": registers,
        "spilled_bytes": stack + local,
        "loads": sorted(set(re.findall(r"ld\.global(?:\.\w+)*", ptx))),
        "stores": sorted(set(re.findall(r"st\.global(?:\.\w+)*", ptx))),
        "moves_in_loops": sum(loop.count("convert_layout") for loop in loops),
    }


def sums(order: int, **changes: Any) -> dict[str, Any]:
    """``row_sums`` as ``TritonPass`` launches it, for the reference vocabulary."""
    flags = {"TEACHER": True, "DIAGNOSTICS": False, "HOLES": False, "CAP": 0.0, "TEACHER_CAP": 0.0, "VOCAB": VOCAB}
    tile = {"LANES": triton_rows.LANES, "WIDTH": triton_rows.WIDTH}
    dtype = changes.pop("dtype", "fp32")
    return compile_kernel(
        triton_kernels.row_sums, {**flags, **tile, "ORDER": order, **changes}, triton_rows.LANES // 32,
        student=dtype, teacher=dtype, sums=dtype, top_ids="i64",
    )  # fmt: skip


def gradient(
    out: str, slope: bool = False, cap: float = 0.0, vocab: int = VOCAB, dtype: str = "fp32"
) -> dict[str, Any]:
    """``write_gradient`` likewise."""
    constants = {"SLOPE": slope, "CAP": cap, "TEACHER_CAP": cap, "BLOCK": triton_rows.GRADIENT_BLOCK, "VOCAB": vocab}
    return compile_kernel(
        triton_kernels.write_gradient, constants, triton_rows.GRADIENT_WARPS,
        student=dtype, teacher=dtype, out=out, tops=dtype, top_differences=dtype, a=dtype, b=dtype,
    )  # fmt: skip


def variants() -> dict[str, dict[str, Any]]:
    """Every kind of kernel that an estimator can ask for."""
    capped = {"CAP": 30.0, "TEACHER_CAP": 30.0}
    return {
        "sums, order 0": sums(0),
        "sums, order 1": sums(1),
        "sums, order 2": sums(2),
        "sums, diagnostics": sums(2, DIAGNOSTICS=True),
        "sums, order 1, support": sums(1, HOLES=True),
        "sums, diagnostics, support": sums(2, DIAGNOSTICS=True, HOLES=True),
        "sums, soft cap": sums(2, **capped),
        "sums, soft cap, support, diagnostics": sums(2, DIAGNOSTICS=True, HOLES=True, **capped),
        "sums, no teacher": sums(0, TEACHER=False, HOLES=True),
        "sums, 151669 tokens": sums(1, VOCAB=151669),
        "sums, float64": sums(2, DIAGNOSTICS=True, HOLES=True, dtype="fp64"),
        "gradient, bf16": gradient("bf16"),
        "gradient, fp16": gradient("fp16"),
        "gradient, fp32": gradient("fp32"),
        "gradient, fp32, slope": gradient("fp32", slope=True),
        "gradient, bf16, soft cap": gradient("bf16", cap=30.0),
        "gradient, bf16, slope": gradient("bf16", slope=True),
        "gradient, bf16, slope, soft cap": gradient("bf16", slope=True, cap=30.0),
        "gradient, fp32, slope, soft cap": gradient("fp32", slope=True, cap=30.0),
        "gradient, bf16, 151669 tokens": gradient("bf16", vocab=151669),
        "gradient, float64": gradient("fp64", slope=True, cap=30.0, dtype="fp64"),
    }


if __name__ == "__main__":
    print(json.dumps(variants(), indent=1))

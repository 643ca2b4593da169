"""What the kernels become on a Hopper GPU, seen without one: registers, spills, widths of loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("compile_for_hopper.py")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    source = Path(__file__).parents[2] / "src"
    cache = str(tmp_path_factory.mktemp("triton"))
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": cache, "PYTHONPATH": str(source)}
    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nothing_is_spilled(kernels):
    """But in float64, which is for checks."""
    assert {name for name, k in kernels.items() if k["spilled_bytes"]} <= {"sums, float64"}


def test_two_blocks_of_sixteen_warps_fit_on_a_multiprocessor(kernels):
    registers = {name: k["registers"] for name, k in kernels.items() if name.startswith("sums") and "64" not in name}
    assert registers and max(registers.values()) <= 64, registers


def test_whole_tiles_are_read_and_written_in_128_bits(kernels):
    for name, k in kernels.items():
        if "151669" in name:  # its last, masked tile is read word by word
            assert {"ld.global.v4.b32", "ld.global.b32"} <= set(k["loads"]), name
        elif "float64" not in name:
            # single words are the gradient's numbers of a row
            assert set(k["loads"]) <= {"ld.global.v4.b32"} | ({"ld.global.b32"} if "gradient" in name else set()), name
            assert "ld.global.v4.b32" in k["loads"], name
            assert "gradient" not in name or k["stores"] == ["st.global.v4.b32"], name


def test_nothing_crosses_lanes_inside_a_row(kernels):
    assert sum(k["moves_in_loops"] for k in kernels.values()) == 0

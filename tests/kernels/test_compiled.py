"""What the kernels become on a Hopper GPU, seen without one: registers, spills, widths of loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def printed(script, cache):
    """What a script of this folder prints in a process that does not interpret kernels."""
    source = Path(__file__).parents[2] / "src"
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(source)}
    path = Path(__file__).with_name(script)
    done = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return printed("compile_for_hopper.py", tmp_path_factory.mktemp("triton"))


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


def test_the_number_of_rows_compiles_nothing_anew(tmp_path):
    """A gradient with slope in half precision has a first tile in float32."""
    expected = [{"row_sums": 1, "write_gradient": count} for count in (1, 1, 1, 2)]
    assert printed("count_variants.py", tmp_path) == expected

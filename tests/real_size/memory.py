"""`vopd train` at real sizes: its peak memory against the estimate of `--dry-run`, and what it leaves.

    make test-real-size

Not part of `make test`: minutes. Each run is a process of its own, whose peak is read from /proc, so Linux only.
VOPD_TOKENIZERS names the folder that `make test-tokenizers` fetches.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from real_size.sizes import SIZES

ROOT = Path(__file__).parents[2]
SOURCES = Path(__file__).with_name("sizes.py")
GIB = 1 << 30
WITHIN = 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_the_estimate_is_near_the_peak(name: str, tmp_path: Path) -> None:
    made = run([str(SOURCES), name, str(tmp_path), os.environ["VOPD_TOKENIZERS"]], tmp_path)
    assert made.returncode == 0, made.output
    given = {
        "model": tmp_path / "student", "teacher_model": tmp_path / "teacher", "dataset": tmp_path / "prompts.jsonl",
        "output_dir": tmp_path, "run_name": "run", "use_cpu": True, "report_to": "none", **SIZES[name].options,
    }  # fmt: skip
    command = ["-m", "vopd", "train", *(part for key, value in given.items() for part in (f"--{key}", f"{value}"))]
    dry = run([*command, "--dry_run", "true"], tmp_path)
    found = re.search(r"estimated memory per device: ([\d.]+) GiB at the peak.*?\n\n", dry.output, re.DOTALL)
    assert found is not None, dry.output
    trained = run(command, tmp_path)
    assert trained.returncode == 0, trained.output
    estimate, peak = float(found[1]), trained.peak / GIB
    print(f"\n{name}: estimate {estimate:.1f} GiB, peak {peak:.2f} GiB, ratio {estimate / peak:.2f}")
    print(found[0].strip())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == SIZES[name].options["max_steps"] and all(map(math.isfinite, losses))
    saved = "adapter_model.safetensors" if "lora_rank" in SIZES[name].options else "model.safetensors"
    assert (tmp_path / "run" / "model" / saved).is_file()
    assert abs(estimate / peak - 1) <= WITHIN, found[0]


class Ended:
    """What a program printed, its exit code, and the peak of its resident memory in bytes."""

    def __init__(self, returncode: int, output: str, peak: int) -> None:
        self.returncode, self.output, self.peak = returncode, output, peak


def run(arguments: list[str], folder: Path) -> Ended:
    """Run this Python with the sources of this checkout.

    The peak is VmHWM, read until the process ends: ru_maxrss would begin with the memory of this process.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    log, peak = folder / "log", 0
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, *arguments], stdout=out, stderr=out, env=environment, cwd=folder)
        while process.poll() is None:
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
            peak = peak if found is None else int(found[1]) * 1024
            time.sleep(0.02)
    return Ended(process.returncode, log.read_text("utf-8"), peak)

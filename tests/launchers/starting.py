"""Starts programs as users do, with accelerate and a file of configs/accelerate, on two processes without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from training.two_processes import SOURCES, free_port

CONFIGS = SOURCES.parent / "configs" / "accelerate"
HERE = Path(__file__).parent


def command(config: str, *program: str, processes: int = 2, port: int | None = None) -> list[str]:
    """`accelerate launch` with `config`; `program` begins with options of accelerate that go before it."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{config}.yaml")]
    return [*launcher, "--num_processes", str(processes), "--main_process_port", str(port or free_port()), *program]


def environment() -> dict[str, str]:
    """What a process is told: sources, one thread, and that DeepSpeed is to do without a GPU."""
    own = {"PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    # DeepSpeed builds an operation, with programs that are beside this Python.
    return os.environ | own | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}


def start(config: str, *program: str, folder: Path | None = None) -> str:
    """What the program says, which has to end well."""
    line = command(config, *program)
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=600, cwd=folder)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout + done.stderr

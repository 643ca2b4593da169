"""Starts a program in two processes that talk through gloo."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "src"


def free_port() -> int:
    """One that nobody listens on, below those that the system hands out: it is only taken seconds later."""
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def launch(program: Path, *arguments: str) -> None:
    """Run `program` under torchrun and demand that it ends well."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    environment = os.environ | {"PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(program), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]

"""A vLLM server on the CPU for the programs beside this file, on a free port of the loopback address."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Of an engine in this process as well.
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}


@contextmanager
def serving(python: str, model: Path, *flags: str, **environment: str) -> Iterator[str]:
    """The address of a server of `model` in float32, once it answers; `python` may be that of one that runs already."""
    if python.startswith("http"):
        yield python
        return
    with starting(python, model, *flags, **environment) as answering:
        yield answering()


@contextmanager
def starting(python: str, model: Path, *flags: str, **environment: str) -> Iterator[Callable[[], str]]:
    """Start a server of `model` in float32: the function waits until it answers and returns its address."""
    port = free_port()
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--dtype", "float32", "--max-model-len", "256", "--enforce-eager"]
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | SETTINGS | environment
    with tempfile.NamedTemporaryFile("w+", suffix=".log", delete=False) as log:
        process = subprocess.Popen([*command, "--max-num-seqs", "16", *flags], env=inherited, stdout=log, stderr=log)
    try:
        yield partial(wait, f"http://127.0.0.1:{port}", process, log.name)
    finally:
        process.terminate()
        process.wait(60)
    Path(log.name).unlink()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait(url: str, process: subprocess.Popen[bytes], log: str) -> str:
    """Return the address once the server answers; 15 minutes at most."""
    for _ in range(900):
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}; its log is {log}")
        try:
            urllib.request.urlopen(f"{url}/health", timeout=1).close()
            return url
        except OSError:
            time.sleep(1)
    raise SystemExit(f"the server did not answer within 15 minutes; its log is {log}")


def place(url: str) -> str:
    """What a number has to be written down with: version, machine, commit."""
    with urllib.request.urlopen(f"{url}/version") as answer:
        return on_this_machine(str(json.load(answer)["version"]))


def on_this_machine(version: str) -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    commit = done.stdout.strip() or "unknown"
    return f"vLLM {version} in float32 on {platform.machine()}, {os.cpu_count()} cores, at commit {commit}"

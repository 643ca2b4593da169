"""Runs the steps of a measurement one after another, or some side by side, and keeps what each of them gave.

Every step is a process of its own with a time limit. One that fails, hangs or lacks a package is recorded and passed
over, and the record is written again after each, so that nothing is lost when the machine goes away.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
_TAIL = 4000
_GRACE_S = 10


@dataclass(frozen=True)
class Step:
    """A command with a time limit, and the packages that it needs.

    `words` begins with a script of this folder or with Python's own arguments (-m ...). A word RESULT is the path of a
    JSON file, whose content goes into the record.
    """

    name: str
    seconds: float
    words: Sequence[str]
    packages: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Record:
    """What was measured so far: one entry a step, in `file`."""

    file: Path
    about: dict[str, Any]
    steps: dict[str, Any] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def add(self, name: str, entry: dict[str, Any]) -> None:
        with self.lock:
            self.steps[name] = entry
            self.file.write_text(json.dumps({**self.about, "steps": self.steps}, indent=1) + "\n")
            print(
                f"{name}: {entry.get('skipped') or 'exit code {exit_code} after {seconds} s'.format(**entry)}",
                flush=True,
            )

    def run(self, *lanes: Sequence[Step]) -> None:
        """Run the steps of each lane in order, and the lanes side by side."""
        with ThreadPoolExecutor(max(1, len(lanes))) as pool:
            list(pool.map(self._lane, lanes))

    def _lane(self, steps: Sequence[Step]) -> None:
        for step in steps:
            missing = [name for name in step.packages if importlib.util.find_spec(name) is None]
            self.add(step.name, {"skipped": f"needs {', '.join(missing)}"} if missing else self._one(step))

    def _one(self, step: Step) -> dict[str, Any]:
        result = self.file.with_name(f".{self.file.stem}-{step.name.replace(' ', '-')}.json")
        result.unlink(missing_ok=True)
        words = [str(result) if word == "RESULT" else word for word in step.words]
        environment = {**os.environ, **step.environment}
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, (str(ROOT / "src"), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH")))
        )
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, env=environment, start_new_session=True, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace",
        )  # fmt: skip
        text = _output(process, step.seconds).replace(str(ROOT), ".")
        with self.file.with_suffix(".log").open("a") as log:
            log.write(f"\n==== {step.name}\n{text}")
        entry: dict[str, Any] = {"exit_code": process.returncode, "seconds": round(time.monotonic() - started, 1)}
        if result.is_file():
            entry["result"] = json.loads(result.read_text())
            result.unlink()
        return entry if process.returncode == 0 else {**entry, "output": text[-_TAIL:]}


def _output(process: subprocess.Popen[str], seconds: float) -> str:
    """All that it printed; after `seconds` it is interrupted, as by Ctrl-C, and then killed."""
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)
    try:
        return process.communicate(timeout=_GRACE_S)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[0]


def arguments(description: str | None) -> argparse.Namespace:
    """--results FOLDER, which is made if it is not there, and --dry-run."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes and models, on any machine")
    given = parser.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    return given


def about(command: str) -> dict[str, Any]:
    """The machine, the versions, the commit and the command of a measurement."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import torch
    from loss import machine

    versions = {}
    for name in ("triton", "transformers", "trl", "peft", "accelerate", "liger_kernel"):
        with_it = importlib.util.find_spec(name) is not None
        versions[name] = importlib.metadata.version(name) if with_it else None
    found = {**machine("cuda" if torch.cuda.is_available() else "cpu"), **versions, "command": command}
    found["commit"] = os.environ.get("COMMIT") or found["commit"]  # a copy of the sources has no history
    return found

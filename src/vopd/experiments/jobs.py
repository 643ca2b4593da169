"""Several jobs at a time, each in its own process with one thread."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import vopd
from vopd.errors import VOPDError

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    """A command `python -m COMMAND ...`; its output goes to `log`. `offline`: no requests to the Hugging Face Hub."""

    name: str
    command: Sequence[str]
    log: Path
    offline: bool = True


class _Running:
    """A running job."""

    def __init__(self, job: Job) -> None:
        self.job, self.started = job, time.monotonic()
        with job.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *job.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=child_environment(job.offline),
            )


def run_jobs(
    jobs: Sequence[Job],
    processes: int,
    *,
    finished: Callable[[Job, float], None],
    tick: Callable[[Sequence[Job]], None],
    excused: Callable[[Job, int], bool] = lambda job, code: False,
) -> None:
    """Run all jobs in order, `processes` at a time.

    Args:
        finished: called with a job that succeeded, and its wall seconds.
        tick: called a few times a second with the running jobs.
        excused: called with a job that failed, and its exit code; if it returns True the others continue.

    Raises:
        VOPDError: a job failed; has its exit code and the last line of its output. The others are stopped, as they are
            on any other exception.
    """
    waiting = list(jobs)
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                running.append(_Running(waiting.pop(0)))
            time.sleep(_POLL_SECONDS)
            running = [entry for entry in running if not _ended(entry, finished, excused)]
            tick([entry.job for entry in running])
    finally:
        for entry in running:
            entry.process.terminate()
        for entry in running:
            entry.process.wait()


def child_environment(offline: bool = True) -> dict[str, str]:
    """The environment of a job: one thread, no network, this installation of vopd, and every module importable here."""
    paths = [str(Path(vopd.__file__).parent.parent), os.environ.get("PYTHONPATH"), *sys.path]
    more = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    more |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    return {**os.environ, **more, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def last_line(log: Path) -> str:
    """The last line of a job's output; empty if there is none."""
    return (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]


def _ended(entry: _Running, finished: Callable[[Job, float], None], excused: Callable[[Job, int], bool]) -> bool:
    """Whether a job has succeeded, or failed and is excused."""
    code = entry.process.poll()
    if code is None:
        return False
    if code == 0:
        finished(entry.job, time.monotonic() - entry.started)
    elif not excused(entry.job, code):
        line = last_line(entry.job.log) or "no output"
        error = VOPDError(f"{entry.job.name} failed: {line}; see {entry.job.log}")
        error.exit_code = code if code > 0 else 1
        raise error
    return True

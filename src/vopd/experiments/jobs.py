"""Several commands at a time, each in a process of its own with one thread."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import vopd
from vopd.errors import VOPDError

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    """Python command lines to run one after the other, as `python -m ...`; their output goes to `log`.

    `offline` keeps the Hugging Face Hub out.
    """

    name: str
    commands: Sequence[Sequence[str]]
    log: Path
    offline: bool = True


@dataclass
class _Running:
    job: Job
    waiting: list[Sequence[str]]
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)


def run_jobs(
    jobs: Sequence[Job],
    processes: int,
    *,
    finished: Callable[[Job, float], None],
    tick: Callable[[Sequence[Job]], None],
    excused: Callable[[Job, int], bool] = lambda job, code: False,
) -> None:
    """Run all jobs, `processes` at a time, in their order.

    Args:
        finished: called with a job that ended well, and its seconds.
        tick: called a few times a second with the jobs that are running.
        excused: called with a job whose command failed, and its exit code; True lets the others go on without it.

    Raises:
        VOPDError: a command failed; with its exit code and the last line that it wrote. The other jobs are stopped,
            as they are on any other exception.
    """
    waiting = list(jobs)
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                running.append(_start(waiting.pop(0)))
            time.sleep(_POLL_SECONDS)
            running = [entry for entry in running if not _ended(entry, finished, excused)]
            tick([entry.job for entry in running])
    finally:
        for entry in running:
            entry.process.terminate()
        for entry in running:
            entry.process.wait()


def child_environment(offline: bool = True) -> dict[str, str]:
    """The environment of a job: one thread, no network, this very vopd."""
    environment = dict(os.environ)
    environment.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", PYTHONUNBUFFERED="1")
    if offline:
        environment["HF_HUB_OFFLINE"] = "1"
    source = str(Path(vopd.__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [source, environment.get("PYTHONPATH")]))
    return environment


def _start(job: Job) -> _Running:
    first, *others = job.commands
    job.log.write_bytes(b"")
    return _Running(job, others, _spawn(job, first))


def _spawn(job: Job, command: Sequence[str]) -> subprocess.Popen[bytes]:
    with job.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=child_environment(job.offline),
        )


def _ended(entry: _Running, finished: Callable[[Job, float], None], excused: Callable[[Job, int], bool]) -> bool:
    """True once the last command of a job has ended well, or one that is excused has failed; starts the next one."""
    code = entry.process.poll()
    if code is None:
        return False
    if code != 0:
        if excused(entry.job, code):
            return True
        error = VOPDError(f"{entry.job.name} failed: {_last_line(entry.job.log)}; see {entry.job.log}")
        error.exit_code = code if code > 0 else 1
        raise error
    if entry.waiting:
        entry.process = _spawn(entry.job, entry.waiting.pop(0))
        return False
    finished(entry.job, time.monotonic() - entry.started)
    return True


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it wrote nothing"

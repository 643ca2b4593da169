"""Jobs run in order, so many at a time, and leave nothing running behind."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from messages import says
from vopd.errors import VOPDError
from vopd.experiments.jobs import Job, child_environment, run_jobs


def python(statement: str) -> list[str]:
    """A `python -m` command that runs one statement once."""
    return ["timeit", "-n", "1", "-r", "1", statement]


def write_pid(path: Path) -> str:
    return f"import os, time, pathlib; pathlib.Path({str(path)!r}).write_text(str(os.getpid())); time.sleep(60)"


def run(jobs: Sequence[Job], processes: int) -> tuple[list[str], int]:
    """Names in the order they finished, and the most jobs that were seen running."""
    names: list[str] = []
    most = 0

    def tick(running: Sequence[Job]) -> None:
        nonlocal most
        most = max(most, len(running))

    run_jobs(jobs, processes, finished=lambda job, seconds: names.append(job.name), tick=tick)
    return names, most


def test_jobs_run_in_their_order_and_leave_what_they_said(tmp_path: Path) -> None:
    jobs = [Job(name, python(f"print('I am {name}')"), tmp_path / f"{name}.log") for name in ("first", "second")]
    assert run(jobs, 1)[0] == ["first", "second"]
    assert "I am second" in (tmp_path / "second.log").read_text()


def test_no_more_jobs_at_a_time_than_asked_for(tmp_path: Path) -> None:
    jobs = [Job(str(index), python("import time; time.sleep(0.5)"), tmp_path / f"{index}.log") for index in range(3)]
    names, most = run(jobs, 2)
    assert sorted(names) == ["0", "1", "2"]
    assert most == 2


def test_a_failure_tells_the_last_line_and_the_exit_code(tmp_path: Path) -> None:
    job = Job("broken", python("import os; print('what is wrong', flush=True); os._exit(6)"), tmp_path / "log")
    with pytest.raises(VOPDError, match=says(f"broken ... what is wrong ... {tmp_path / 'log'}")) as caught:
        run([job], 1)
    assert caught.value.exit_code == 6


def test_a_failure_stops_the_other_jobs(tmp_path: Path) -> None:
    long = Job("long", python(write_pid(tmp_path / "pid")), tmp_path / "long.log")
    wait = f"import time, pathlib\nwhile not pathlib.Path({str(tmp_path / 'pid')!r}).exists(): time.sleep(0.05)"
    broken = Job("broken", python(f"{wait}\nraise SystemExit(3)"), tmp_path / "broken.log")
    started = time.monotonic()
    with pytest.raises(VOPDError, match="broken failed"):
        run([long, broken], 2)
    assert time.monotonic() - started < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_an_interrupt_stops_the_jobs(tmp_path: Path) -> None:
    pid = tmp_path / "pid"

    def interrupt(running: Sequence[Job]) -> None:
        if pid.exists() and pid.read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job = Job("long", python(write_pid(pid)), tmp_path / "log")
        run_jobs([job], 1, finished=lambda job, seconds: None, tick=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_jobs_have_one_thread_no_network_and_this_vopd() -> None:
    environment = child_environment()
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["HF_HUB_OFFLINE"] == "1"
    first, *others = environment["PYTHONPATH"].split(os.pathsep)
    assert (Path(first) / "vopd" / "experiments" / "jobs.py").is_file()
    assert set(filter(None, sys.path)) <= {first, *others}  # where a module of an estimator may lie

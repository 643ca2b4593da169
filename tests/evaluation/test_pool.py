"""The worker processes: time limits, deaths, threads, forks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vopd.errors import ConfigurationError
from vopd.evaluation import grade, grade_many
from vopd.evaluation.grading.pool import Pool

HARD = r"9^{9^{9^{9}}}"
SOURCES = str(Path(__file__).parents[2] / "src")


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(2)
    yield pool
    pool.close()


def pids(pool: Pool) -> list[int]:
    """Of the workers that run."""
    return [worker.process.pid for worker in list(pool.workers) if worker.alive]


def pairs(count: int) -> list[tuple[str, str]]:
    return [(rf"x+{n}", rf"{n}+x") for n in range(count)]


def test_a_hard_expression_costs_its_limit_and_nothing_else(pool: Pool) -> None:
    pool.ask_many(pairs(4), 60)  # warm
    work = pairs(20)
    work.insert(3, ("1", HARD))
    start = time.monotonic()
    replies = pool.ask_many(work, 2)
    elapsed = time.monotonic() - start
    assert (replies[3].verdict, replies[3].note) == ("wrong", "timed out")
    assert all(reply == ("right", "") for index, reply in enumerate(replies) if index != 3)
    assert 2 <= elapsed < 8


@pytest.mark.parametrize(("said", "verdict"), [("ready", "ungradable"), ("ready gold", "wrong")])
def test_a_limit_passed_while_reading_the_gold_is_no_fault_of_the_answer(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, said: str, verdict: str
) -> None:
    silent = f"""
import sys, time
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
for word in {said.split()}: connection.send_bytes(word.encode())
time.sleep(60)
"""
    monkeypatch.setattr("vopd.evaluation.grading.pool._COMMAND", silent)
    assert pool.ask("1", "2", 1) == (verdict, "timed out")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_limited(pool: Pool) -> None:
    pool.ask("1+x", "x+1", 60)
    limits = Path(f"/proc/{pids(pool)[0]}/limits").read_text().splitlines()
    (line,) = (line for line in limits if line.startswith("Max address space"))
    assert str(4 << 30) in line


def test_a_dead_worker_loses_nothing(pool: Pool) -> None:
    pool.ask_many(pairs(4), 60)
    before = set(pids(pool))
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert all(reply.verdict == "right" for reply in pool.ask_many(pairs(6), 60))
    assert pids(pool) and not before & set(pids(pool))


def test_workers_killed_at_work_lose_nothing(pool: Pool) -> None:
    pool.ask_many(pairs(4), 60)

    def shoot() -> None:
        time.sleep(0.4)
        for pid in pids(pool):  # once: a request that loses two workers is given up by design
            os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=shoot)
    thread.start()
    replies = pool.ask_many([(rf"\sin(x)^2+{n}", rf"{n + 1}-\cos(x)^2") for n in range(30)], 60)
    thread.join()
    assert [reply.verdict for reply in replies] == ["right"] * 30


def test_workers_that_do_not_start_are_an_error(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vopd.evaluation.grading.pool._COMMAND", "raise SystemExit('no such thing')")
    with pytest.raises(ConfigurationError, match="do not start"):
        pool.ask("1+x", "x+1", 5)


def test_from_threads() -> None:
    outcomes: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: outcomes.append(grade(rf"\boxed{{y+{n}}}", f"{n}+y").outcome))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["right"] * 4


def test_an_outer_alarm_survives() -> None:
    before = signal.alarm(100)
    try:
        assert grade(r"\boxed{z+1}", "1+z").outcome == "right"
        assert 0 < signal.alarm(0) <= 100
    finally:
        signal.alarm(before)


def _grade_in_child(queue: multiprocessing.Queue[str]) -> None:
    queue.put(grade(r"\boxed{w+1}", "1+w").outcome)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_from_daemonic_children(method: str) -> None:
    grade(r"\boxed{v+1}", "1+v")  # the parent has its own pool
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_grade_in_child, args=(queue,), daemon=True)
    child.start()
    assert queue.get(timeout=60) == "right"
    child.join()
    assert grade(r"\boxed{u+1}", "1+u").outcome == "right"


def test_a_script_without_main_guard_and_without_torch(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(r"""
        import sys
        from vopd.evaluation import grade
        print("started", grade(r"\boxed{a+1}", "1+a").outcome, "torch" in sys.modules)
        """)
    )
    # A module of this name beside the script must not be taken for the standard library's by a worker.
    (tmp_path / "random.py").write_text("raise RuntimeError('shadowed')")
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    done = subprocess.run(
        [sys.executable, "-P", str(script)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "started right False\n"


def test_workers_end_with_their_parent() -> None:
    code = r"""
import os, signal
from vopd.evaluation import grade
from vopd.evaluation.grading.pool import shared_pool
grade(r"\boxed{a+1}", "1+a")
print(*[worker.process.pid for worker in shared_pool().workers], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    pids = [int(pid) for pid in done.stdout.split()]
    assert pids
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_easy_answers_are_quick() -> None:
    grade_many([(r"\boxed{1}", "1")])
    easy = [(rf"so \boxed{{\frac{{{n}}}{{7}}}}", rf"\frac{{{2 * n}}}{{14}}") for n in range(1, 1001)]
    start = time.process_time()
    assert all(found.outcome == "right" for found in grade_many(easy))
    assert time.process_time() - start < 3

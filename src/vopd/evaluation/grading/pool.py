"""A pool of worker processes that can be killed, so that a hard expression costs at most its time limit.

Can be called from any thread. A worker that exceeds its limit, dies or is killed is replaced; a request whose worker
died is sent again, so nothing is lost. The pool belongs to one process: after a fork the child starts its own.
"""

from __future__ import annotations

import atexit
import itertools
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from typing import NamedTuple

from vopd.errors import ConfigurationError, MissingExtraError, how_to_install, installed

_START_S = 120.0
_ATTEMPTS = 3
_TRY = f"python -c 'import {__package__}.algebra'"
_WARM, _STARTING, _EMPTY = range(3)
_COMMAND = f"from {__package__}.worker import main; main()"


class Reply(NamedTuple):
    """A worker's reply: ``verdict`` is "right", "wrong" or "ungradable"; ``note`` says what went wrong, if anything."""

    verdict: str
    note: str = ""


class Worker:
    """One process and the connection to it. Not thread-safe."""

    def __init__(self) -> None:
        # The same module search path as here, and a fixed hash seed, because the order of sympy's sets must not change
        # a verdict.
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        environment = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "0"}
        self.ready = False
        self._connection, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _COMMAND, str(theirs.fileno())], pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
            )  # fmt: skip

    def ask(self, gold: str, answer: str, limit_s: int) -> Reply:
        """Compare two normalized answers within the limit; if the worker exceeds the limit, it is killed.

        Raises:
            EOFError, OSError: the worker ended during the request, or did not become `ready` in time.
        """
        if not self.ready:
            self._hear(time.monotonic() + _START_S)
            self.ready = True
        deadline = time.monotonic() + limit_s
        gold_read = False
        try:
            self._connection.send((gold, answer, limit_s))
            while (reply := self._hear(deadline)) == "gold":
                gold_read = True
            return Reply(reply)
        except TimeoutError:
            self.kill()
            return Reply("wrong" if gold_read else "ungradable", "timed out")
        except BaseException:
            self.kill()  # a late reply must not be read as the answer to the next request
            raise

    def kill(self) -> None:
        """Kill the process and wait for its end."""
        self.process.kill()
        self.process.wait()
        self._connection.close()

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def _hear(self, deadline: float) -> str:
        if not self._connection.poll(max(deadline - time.monotonic(), 0)):
            raise TimeoutError
        # Plain bytes: nothing that comes from a worker is unpickled.
        return self._connection.recv_bytes().decode()


class Pool:
    """Lends workers to callers: a warm one first, then one that is starting, and a new one last."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pid = os.getpid()
        self.workers: set[Worker] = set()
        self._places: queue.PriorityQueue[tuple[int, int, Worker | None]] = queue.PriorityQueue()
        self._order = itertools.count()
        for _ in range(size):
            self._put(_EMPTY, None)

    def ask(self, gold: str, answer: str, limit_s: int) -> Reply:
        """Compare two normalized answers; waits for a free worker.

        Raises:
            ConfigurationError: workers do not start.
        """
        worker = self._places.get()[2]
        deaths = failed_starts = 0
        try:
            while deaths < _ATTEMPTS and failed_starts < _ATTEMPTS:
                if worker is None or not worker.alive:
                    worker = self._start(worker)
                try:
                    return worker.ask(gold, answer, limit_s)
                except (EOFError, OSError):
                    deaths += worker.ready
                    failed_starts += not worker.ready
                worker.kill()
        finally:
            if worker is not None and worker.alive:
                self._put(_WARM, worker)
            elif failed_starts:
                self._put(_EMPTY, None)
            else:
                self._put(_STARTING, self._start(worker))  # starts while other workers are busy
        if failed_starts:
            raise ConfigurationError(f"the grader's worker processes do not start; to see why, run: {_TRY}")
        return Reply("wrong", "worker died")

    def ask_many(self, pairs: Sequence[tuple[str, str]], limit_s: int) -> list[Reply]:
        """The replies, in the order of the pairs, computed by all workers in parallel."""
        if len(pairs) == 1:
            return [self.ask(pairs[0][0], pairs[0][1], limit_s)]
        threads = ThreadPoolExecutor(self.size, thread_name_prefix="vopd-grade")
        try:
            return list(threads.map(lambda pair: self.ask(pair[0], pair[1], limit_s), pairs))
        finally:
            threads.shutdown(cancel_futures=True)  # an interrupt does not wait for pending requests

    def close(self) -> None:
        """Kill every worker. Does nothing in a forked child, which does not own the workers."""
        if os.getpid() != self.pid:
            return
        for worker in list(self.workers):
            worker.kill()

    def _put(self, rank: int, worker: Worker | None) -> None:
        self._places.put((rank, next(self._order), worker))

    def _start(self, dead: Worker | None) -> Worker:
        if dead is not None:
            dead.kill()
            self.workers.discard(dead)
        worker = Worker()
        self.workers.add(worker)
        return worker


_lock = threading.Lock()
_pool: Pool | None = None


def shared_pool() -> Pool:
    """The pool of this process, created on first use, with one worker per core, from two to eight."""
    global _pool
    if not installed("math_verify"):
        raise MissingExtraError(f"math-verify is needed to grade math answers; {how_to_install('math_verify', 'eval')}")
    if sys.platform == "win32":
        raise ConfigurationError("math answers are graded in a way that Windows does not offer; use Linux, as in WSL")
    with _lock:
        if _pool is None or _pool.pid != os.getpid():
            _pool = Pool(max(2, min(_cores(), 8)))
            atexit.register(_pool.close)
        return _pool


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

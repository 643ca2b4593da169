"""A pool of worker processes that can be killed: a hard expression costs its time limit and nothing else.

Callable from any thread. A worker that runs past its limit, dies or is killed is replaced; a request whose
worker died is asked once more, so nothing is lost. The pool belongs to one process: after a fork the child
starts its own.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from vopd.errors import ConfigurationError, MissingExtraError

_START_S = 120.0
_COMMAND = "from vopd.evaluation.worker import main; main()"


class Reply(NamedTuple):
    """What a worker said: ``verdict`` is "right", "wrong" or "ungradable"; ``note`` says what went wrong, if
    anything."""

    verdict: str
    note: str = ""


class _Died(Exception):
    pass


class Worker:
    """One process and its pipes. Not for two threads at a time."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self._buffer = b""
        self._ready = False

    def ask(self, gold: str, answer: str, limit_s: int) -> Reply:
        """Compare two normalised answers within the limit; the worker is dead afterwards if it ran past
        it."""
        if not self._ready:
            self._line(time.monotonic() + _START_S)
            self._ready = True
        deadline = time.monotonic() + limit_s
        self._send(json.dumps([gold, answer, limit_s]))
        gold_read = False
        try:
            while True:
                reply = self._line(deadline)
                if reply != "gold":
                    return Reply(reply)
                gold_read = True
        except TimeoutError:
            self.kill()
            return Reply("wrong" if gold_read else "ungradable", "timed out")

    def kill(self) -> None:
        """End the process at once and collect it."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def _send(self, line: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError, OSError) as error:
            raise _Died from error

    def _line(self, deadline: float) -> str:
        assert self.process.stdout is not None
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self.process.stdout], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                raise TimeoutError
            chunk = os.read(self.process.stdout.fileno(), 65536)
            if not chunk:
                raise _Died
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)


class Pool:
    """Workers handed to whoever asks, started when first needed."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pid = os.getpid()
        self._places: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(size):
            self._places.put(None)

    def ask(self, gold: str, answer: str, limit_s: int) -> Reply:
        """Compare two normalised answers, waiting for a free worker first."""
        worker = self._places.get()
        try:
            for _ in range(2):
                if worker is None or not worker.alive:
                    worker = Worker()
                try:
                    return worker.ask(gold, answer, limit_s)
                except (_Died, TimeoutError):
                    worker.kill()
            return Reply("wrong", "worker died")
        finally:
            self._places.put(worker if worker is None or worker.alive else Worker())

    def ask_many(self, pairs: Sequence[tuple[str, str]], limit_s: int) -> list[Reply]:
        """The replies in the order of the pairs; every worker is busy until none is left."""
        if len(pairs) == 1:
            return [self.ask(pairs[0][0], pairs[0][1], limit_s)]
        with ThreadPoolExecutor(self.size, thread_name_prefix="vopd-grade") as threads:
            return list(threads.map(lambda pair: self.ask(pair[0], pair[1], limit_s), pairs))

    def close(self) -> None:
        """Kill every idle worker."""
        while True:
            try:
                worker = self._places.get_nowait()
            except queue.Empty:
                return
            if worker is not None:
                worker.kill()


_lock = threading.Lock()
_pool: Pool | None = None


def shared_pool() -> Pool:
    """The pool of this process, made on first use; one worker a core, at most eight."""
    global _pool
    if importlib.util.find_spec("math_verify") is None:
        raise MissingExtraError(
            "math-verify is needed to grade mathematics; install it with pip install 'vopd[eval]'"
        )
    with _lock:
        if _pool is None or _pool.pid != os.getpid():
            _pool = Pool(min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2, 8))
            atexit.register(_pool.close)
        return _pool


def check_limit(limit_s: int) -> int:
    """A time limit is a whole number of seconds, at least one."""
    if isinstance(limit_s, bool) or not isinstance(limit_s, int) or limit_s < 1:
        raise ConfigurationError(f"limit_s must be a whole number of seconds, 1 or more, not {limit_s!r}")
    return limit_s

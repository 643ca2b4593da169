"""Runs work in threads that do not keep the process from ending."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
_Work = tuple["Future[Any]", Callable[[], Any]]

# Seconds at the end of the process for threads that compute; those that wait for a server wait longer.
_AT_THE_END = 1.0
_open: weakref.WeakSet[Background] = weakref.WeakSet()


class Background:
    """At most `size` threads, which start when there is work for them.

    Those of ``ThreadPoolExecutor`` are waited for at the end of the process: one request that a server does not answer
    would hold up a process that was interrupted, or that ends with an error.
    """

    def __init__(self, size: int, name: str) -> None:
        if size < 1:
            raise ValueError("a pool needs at least one thread")
        self._size, self._name = size, name
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._unfinished: set[Future[Any]] = set()
        self._closed = False
        _open.add(self)

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run `work` in a thread; the future holds its result or error. It is cancelled if the pool is closed."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is closed")
            self._unfinished.add(future)
            self._queue.put((future, work))
            if len(self._threads) < min(self._size, len(self._unfinished)):
                thread = threading.Thread(target=_run, args=(self._queue,), name=self._name, daemon=True)
                self._threads.append(thread)
                thread.start()
        future.add_done_callback(self._unfinished.discard)
        return future

    def close(self) -> None:
        """Cancel all work that has not begun, and end the threads when theirs is done."""
        with self._lock:
            self._closed = True
            with suppress(Empty):
                while True:
                    if (waiting := self._queue.get_nowait()) is not None:
                        waiting[0].cancel()
            for _ in self._threads:
                self._queue.put(None)

    def wait(self, seconds: float) -> None:
        """Wait for work that has begun, at most so long."""
        wait(list(self._unfinished), seconds)


def _run(queue: SimpleQueue[_Work | None]) -> None:
    while (given := queue.get()) is not None:
        future, work = given
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
        del given, future, work  # a waiting thread holds on to nothing


@atexit.register
def _finish() -> None:
    """A thread that is stopped within a computation of torch would abort the process."""
    for pool in list(_open):
        pool.close()
        pool.wait(_AT_THE_END)

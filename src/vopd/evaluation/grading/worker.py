"""The worker process, which compares answers with math-verify. It replies once after reading the reference answer, and
again with the verdict.

It is a plain subprocess with a connection, not a ``multiprocessing`` child, so that it can be started from any
thread and from a daemonic process, needs no ``__main__`` guard in the caller's script, and shares nothing with it.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection

_MEMORY = 4 << 30
_GRACE_S = 10  # beyond the parent's limit


def main() -> None:
    """Answer requests ``(gold, answer, limit_s)`` on the connection with the file descriptor ``sys.argv[1]``, until it
    closes."""
    connection = Connection(int(sys.argv[1]))
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    # Ctrl-C in a terminal reaches the whole process group; only the parent acts on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from .algebra import judge, readable

    connection.send_bytes(b"ready")
    with suppress(EOFError):  # it is closed
        while True:
            gold, answer, limit_s = connection.recv()
            _end_after(limit_s + _GRACE_S)
            reply = b"ungradable"
            if _guarded(readable, gold):
                connection.send_bytes(b"gold")
                reply = b"right" if _guarded(judge, gold, answer) else b"wrong"
            _end_after(0)
            connection.send_bytes(reply)


def _end_after(seconds: int) -> None:
    """End this process then, 0 for never: a worker whose parent was killed must not run forever."""
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)


def _guarded(function: Callable[..., bool], *arguments: str) -> bool:
    """Whether `function` is true; any error of the libraries means that they do not recognize the answer."""
    try:
        return bool(function(*arguments))
    except Exception:
        return False

"""The process that compares answers with math-verify: one request a line in, a line when the gold is read, a
line out.

It is a plain subprocess with pipes, not a ``multiprocessing`` child, so that it can be started from any
thread and from a daemonic process, needs no ``__main__`` guard in the caller's script, and shares nothing
with it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

_MEMORY = 4 << 30
# Beyond the parent's limit: a worker whose parent was killed must not run for ever.
_GRACE_S = 10


def main() -> None:
    """Answer requests ``[gold, answer, limit_s]`` until standard input closes."""
    # The protocol keeps the real standard output; whatever a library prints goes nowhere.
    replies = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    # The interrupt of a terminal reaches the whole process group; only the parent acts on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from .algebra import judge, readable

    print(json.dumps("ready"), file=replies)
    for line in sys.stdin:
        gold, answer, limit_s = json.loads(line)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(limit_s + _GRACE_S)
        reply = "ungradable"
        if _guarded(readable, gold):
            print(json.dumps("gold"), file=replies)
            reply = "right" if _guarded(judge, gold, answer) else "wrong"
        signal.alarm(0)
        print(json.dumps(reply), file=replies)


def _guarded(function: Callable[..., bool], *arguments: str) -> bool:
    """A library that fails on an answer has not recognised it: its errors are of every kind."""
    try:
        return bool(function(*arguments))
    except Exception:
        return False

"""Start and end of a command: quiet libraries, exit codes, and errors of vopd as a single line on stderr."""

from __future__ import annotations

import atexit
import errno
import io
import logging
import os
import select
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TextIO

from vopd.errors import VOPDError, printable
from vopd.secrets import hidden

from .directory import is_main_process

# huggingface_hub and datasets read these when a command imports them, which is after this.
for _quiet in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
    os.environ.setdefault(_quiet, "1")

# Errors of a disk in the middle of a file, for which Python does not name the file.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}

_told: set[str] = set()  # the lines on faults that this command has printed


def report_error(command: Callable[[], int]) -> int:
    """Run a command and return its exit code.

    An error that vopd raises becomes one line on stderr, or one per fault, and its own code.
    """
    _print_anything()
    _log_to_stderr()
    _told.clear()
    # peft and trl use names that transformers has renamed; users cannot fix that.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    try:
        code = command()
        _flush()  # here, where a reader that has gone can be handled
        return code
    except VOPDError as error:
        return _report(error, error.exit_code)
    except BrokenPipeError:
        if not _reader_gone(sys.stdout):
            raise
        # As in `vopd --help | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        return 141
    except OSError as error:
        if error.filename is None and error.errno not in _DISK:
            raise
        return _report(error, 1)
    except KeyboardInterrupt:
        print("vopd: interrupted", file=sys.stderr)
        return 130


def _print_anything() -> None:
    """Print a character that the terminal's encoding lacks as \\u2192; Python would end with a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed before the command was started
            stream.flush()


def _reader_gone(stream: TextIO) -> bool:
    """Whether the other end of a pipe has been closed."""
    if not hasattr(select, "poll"):  # Windows: nothing else that is written to breaks like a pipe
        return True
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return bool(poll.poll(0))


def leave(code: int) -> NoReturn:
    """End this process with the exit code of its command.

    One of several processes exits immediately. While the interpreter shuts down, threads of torch, gloo and DeepSpeed
    may still call into it, which aborts the process: its exit code is lost, and the launcher kills the other processes,
    even if they are still working.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        atexit._run_exitfuncs()
        _flush()
        os._exit(code)
    sys.exit(code)


@contextmanager
def told_by_the_first() -> Iterator[None]:
    """Context in which only the first process logs warnings, for checks that all processes do alike."""
    logger = logging.getLogger("vopd")
    level = logger.level
    if not is_main_process():
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Stderr(logging.StreamHandler):
    """Writes to what stderr is at that moment: while a live step line is shown, rich prints warnings above it."""

    stream = property(lambda self: sys.stderr, lambda self, _: None)

    def format(self, record: logging.LogRecord) -> str:
        return hidden(super().format(record))


def _log_to_stderr() -> None:
    logger = logging.getLogger("vopd")
    logger.setLevel(logging.INFO)
    logger.handlers = [_Stderr()]
    logger.handlers[0].setFormatter(logging.Formatter("vopd: %(message)s"))


def tell(error: Exception) -> None:
    """Print a line on stderr for each fault of an error that was not told yet."""
    faults, own = getattr(error, "more", ()), Exception.__str__ if isinstance(error, VOPDError) else str
    # Always a single line, without control characters from quoted data.
    line = "vopd: error: " + printable(hidden(" ".join(own(error).split())))
    if line not in _told:
        print(line, file=sys.stderr, flush=True)
    _told.add(line)
    for fault in faults:
        tell(fault)


def _report(error: Exception, code: int) -> int:
    if os.environ.get("VOPD_DEBUG") == "1":
        print(hidden("".join(traceback.format_exception(error))), file=sys.stderr)
    tell(error)
    return code

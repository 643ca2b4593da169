"""How a command begins and ends: quiet libraries, its exit code, and one line on stderr for an error of vopd's."""

from __future__ import annotations

import atexit
import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from vopd.errors import VOPDError, printable

from .directory import is_main_process

# Read by huggingface_hub and datasets when they are imported, which a command does after this.
for _quiet in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
    os.environ.setdefault(_quiet, "1")

# What a disk refuses in the middle of a file, where Python does not say of which one.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


def report_error(command: Callable[[], int]) -> int:
    """Return the exit code of a command; an error that vopd raises becomes one line on stderr and its own code."""
    _log_to_stderr()
    # peft and trl call transformers by names that it has changed; nobody who trains can mend that.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    try:
        return command()
    except VOPDError as error:
        return _report(error, error.exit_code)
    except OSError as error:
        if error.filename is None and error.errno not in _DISK:
            raise
        return _report(error, 1)
    except KeyboardInterrupt:
        print("vopd: interrupted", file=sys.stderr)
        return 130


def leave(code: int) -> NoReturn:
    """End this process with the exit code of its command.

    One of several ends at once. While Python takes itself apart, threads of torch, gloo and DeepSpeed may still ask for
    it, which aborts the process: its exit code is lost, and the launcher ends the others, at work or not.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


@contextmanager
def told_by_the_first() -> Iterator[None]:
    """Where every process finds out the same, the first one alone warns of it."""
    logger = logging.getLogger("vopd")
    level = logger.level
    if not is_main_process():
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _log_to_stderr() -> None:
    logger = logging.getLogger("vopd")
    logger.setLevel(logging.INFO)
    # Looked up anew each time: whoever calls main twice may have another stderr by then.
    logger.handlers = [logging.StreamHandler(sys.stderr)]
    logger.handlers[0].setFormatter(logging.Formatter("vopd: %(message)s"))


def _report(error: Exception, code: int) -> int:
    if os.environ.get("VOPD_DEBUG") == "1":
        raise error
    # One line whatever the message holds, and no control characters from data that it quotes.
    print("vopd: error: " + printable(" ".join(str(error).split())), file=sys.stderr)
    return code

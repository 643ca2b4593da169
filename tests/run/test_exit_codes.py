"""How a process of a command ends."""

from __future__ import annotations

import io
import logging
import os
import socket
import subprocess
import sys
from contextlib import redirect_stderr

import pytest

from vopd.run.exit_codes import report_error

SAYS = """
import atexit, sys
from vopd.run.exit_codes import leave

class Left:
    def __del__(self, say=print):
        say("taken apart")

left = Left()
atexit.register(print, "last words")
print("said")
print("told", file=sys.stderr)
leave(3)
"""


@pytest.mark.parametrize(("processes", "end"), [("1", "taken apart\n"), ("2", "")])
def test_one_of_several_processes_is_not_taken_apart_by_python(processes: str, end: str) -> None:
    """A thread that asks for Python meanwhile aborts a process, for which a launcher ends all others."""
    environment = os.environ | {"WORLD_SIZE": processes, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", SAYS], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "said\nlast words\n" + end, "told\n")


def test_libraries_show_no_bars_in_a_command() -> None:
    environment = {name: value for name, value in os.environ.items() if "PROGRESS_BARS" not in name}
    script = "import vopd.run.exit_codes, datasets as d; d.Dataset.from_dict({'a': [1, 2]}).select([1]).map(dict)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def test_warnings_go_to_what_stderr_is_when_they_are_logged() -> None:
    """rich replaces it while a live step line is shown, to print them above the line."""
    replaced = io.StringIO()

    def command() -> int:
        with redirect_stderr(replaced):
            logging.getLogger("vopd").warning("guard fired")
        return 0

    assert report_error(command) == 0 and replaced.getvalue() == "vopd: guard fired\n"


def test_a_pipe_of_something_else_that_breaks_is_not_taken_for_stdout() -> None:
    def command() -> int:
        one, other = socket.socketpair()
        other.close()
        with one:
            return one.send(b"lost")

    with pytest.raises(BrokenPipeError):
        report_error(command)


def test_an_output_that_was_closed_before_the_start_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python has no object for it then."""
    monkeypatch.setattr(sys, "stdout", None)
    assert report_error(lambda: 0) == 0

"""How a process of a command ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SAYS = (
    "import atexit, sys; atexit.register(print, 'last words'); from vopd.run.exit_codes import leave; "
    "print('said'); print('told', file=sys.stderr); leave(3)"
)


@pytest.mark.parametrize(("rank", "said"), [("0", "said\nlast words\n"), ("1", "said\n")])
def test_the_first_process_alone_is_taken_apart_by_python(rank: str, said: str) -> None:
    """A thread that asks for Python meanwhile aborts a process, for which a launcher ends all others."""
    environment = os.environ | {"RANK": rank, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", SAYS], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, said, "told\n")

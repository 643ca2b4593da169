"""Two of the trials that `make test-faults` runs thirty of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_run_that_is_killed_resumes_to_the_same_bits() -> None:
    program = Path(__file__).with_name("kill_and_resume.py")
    done = subprocess.run([sys.executable, str(program), "--trials", "2"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.endswith("2 of 2\n"), done.stdout + done.stderr

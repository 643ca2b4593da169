"""The agreement script, on a checkout made up here: what it reads, leaves out, and says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TESTS = r"""
import math
import pytest

@pytest.mark.parametrize("gold,pred,expected", [
    ("$\\frac{1}{2}$", "0.5", 1),
    (r"$x=1$", r"Answer $2$", 0),
    (r"\boxed{3}", r"so it is \boxed{3}.", 1),
    ("5", "in the end we find that it is 5, which was to be shown", 1),
    (r"\boxed{1} and \boxed{2}", "$1,2$", 1),
    (f"{math.pi}", "x", 1),
])
def test_pairs(gold, pred, expected):
    raise AssertionError("never run")

@pytest.mark.parametrize("gold,pred,expected,precision", [("$1/3$", "$0.33$", 1, 2)])
def test_options(gold, pred, expected, precision): ...

@pytest.mark.parametrize("other", [1])
def test_other(other): ...
"""


@pytest.fixture
def script() -> ModuleType:
    path = Path(__file__).with_name("math_verify_pairs.py")
    spec = importlib.util.spec_from_file_location("math_verify_pairs", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checkout(folder: Path, tests: str) -> str:
    (folder / "tests").mkdir()
    (folder / "tests" / "test_all.py").write_text(tests)
    return str(folder)


def test_full_agreement(script: ModuleType, tmp_path: Path, capsys: Any) -> None:
    assert script.main([checkout(tmp_path, TESTS)]) == 0
    printed = capsys.readouterr().out
    assert "6 literal pairs" in printed and "3 pairs of answers, agreement 100.00 %" in printed
    for reason in ("extraction from prose", "several boxes", "sets an option"):
        assert f"1  {reason}" in printed


def test_an_exception_without_reason_fails(script: ModuleType, tmp_path: Path, capsys: Any) -> None:
    assert script.main([checkout(tmp_path, TESTS.replace('"0.5", 1', '"0.5", 0'))]) == 1
    assert "expected wrong, graded right" in capsys.readouterr().out


def test_no_checkout(script: ModuleType, tmp_path: Path, capsys: Any) -> None:
    assert script.main([]) == script.main([str(tmp_path)]) == 2
    assert script.main([checkout(tmp_path, "")]) == 2
    assert "Math-Verify" in capsys.readouterr().err

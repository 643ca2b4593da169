"""The tool that puts bugs in: what counts as a catch, and what is wrong with a catalogue."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import mutate
from tools.mutate import Bug, Input, Mutation

ONE = Mutation("x", "a.py", "1 + 1", "1 - 1", "tests/test_a.py::TestA::test_sum[2]", raises="DataError")


@pytest.mark.parametrize(
    ("message", "caught"),
    [
        ("assert 0 == 2", True),
        ("AssertionError: Tensor-likes are not close!", True),
        ("Failed: DID NOT RAISE <class 'ValueError'>", True),
        ("vopd.errors.DataError: no rows", True),
        ("DataError", True),
        ("ImportError: cannot import name 'x'", False),
        ("error: failed on setup with SyntaxError", False),
        ("vopd.errors.MismatchError: other", False),
    ],
)
def test_only_an_assertion_or_the_named_error_is_a_catch(message: str, caught: bool) -> None:
    assert mutate.judge(ONE, 1, {"test_sum": message})[0] is caught


def test_a_passing_or_an_absent_test_is_none() -> None:
    assert mutate.judge(ONE, 1, {}) == (False, "the test passes with the bug in")
    assert mutate.judge(ONE, 0, {})[0] is False


def test_the_bug_is_in_only_for_as_long_as_it_is_tried(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("x = 1 + 1\n")
    with pytest.raises(KeyError), mutate.mutated(tmp_path, ONE):
        assert path.read_text() == "x = 1 - 1\n"
        raise KeyError
    assert path.read_text() == "x = 1 + 1\n"


def tree(root: Path, source: str = "x = 1 + 1\n") -> Path:
    (root / "tests").mkdir()
    (root / "a.py").write_text(source)
    (root / "tests" / "test_a.py").write_text("class TestA:\n    def test_sum(self): ...\n")
    return root


def test_a_catalogue_of_the_sources_has_no_problem(tmp_path: Path) -> None:
    bugs = [Bug("a", ["#1"], [ONE]), Bug("b", ["#2"], absent="no place: `test_sum`")]
    assert mutate.problems(bugs, [Input("i", "an error", [ONE.test])], tree(tmp_path)) == []


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("x = 2\n", "a.py has the text to replace 0 times, not once"),
        ("x = 1 + 1, 1 + 1\n", "a.py has the text to replace 2 times, not once"),
        ("x = 1 + 1)\n", "a.py is no program with it"),
    ],
)
def test_a_replacement_applies_once_and_leaves_a_program(tmp_path: Path, source: str, problem: str) -> None:
    (found,) = mutate.problems([Bug("a", ["#1"], [ONE])], [], tree(tmp_path, source))
    assert problem in found


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    gone = Mutation("y", "b.py", "1", "2", "tests/test_a.py::test_product")
    bugs = [Bug("a", [], [ONE]), Bug("b", ["#2"], [gone]), Bug("c", ["#3"], absent="see `test_quotient`")]
    found = "\n".join(mutate.problems(bugs, [Input("i", "an error", ["tests/test_b.py::test_sum"])], tree(tmp_path)))
    for problem in ("a: it needs references", "there is no file b.py", "test_product", "test_quotient", "test_b.py"):
        assert problem in found

"""The tool that puts bugs in: what counts as a catch, and what is wrong with a catalogue."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tools import mutate
from tools.mutate import Bug, Input, Mutation

ONE = Mutation("x", "pack.a", "1 + 1", "1 - 1", "tests/test_a.py::TestA::test_sum[2]", raises="DataError")


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
    path = tree(tmp_path) / ONE.file
    with pytest.raises(KeyError), mutate.mutated(tmp_path, ONE):
        assert path.read_text() == "x = 1 - 1\n"
        raise KeyError
    assert path.read_text() == "x = 1 + 1\n"


def tree(root: Path, source: str = "x = 1 + 1\n") -> Path:
    (root / "tests").mkdir()
    (root / "src" / "pack").mkdir(parents=True)
    (root / ONE.file).write_text(source)
    (root / "tests" / "test_a.py").write_text("class TestA:\n    def test_sum(self): ...\n")
    return root


SOURCE = """
class Sum:
    def __init__(self): self.total = total(1, 2)

    def total(self):
        if self.ready:
            return add(  # in order
                self.first,
                self.second,
            )
"""


def test_a_replacement_is_found_by_its_function_and_its_tokens() -> None:
    """However the line is broken, indented or commented; further lines of the bug take the first one's indentation."""
    one = replace(ONE, within="pack.a:Sum.total", old="return add(self.first, self.second)", new="wait()\nreturn None")
    assert "            wait()\n            return None\n" in mutate.mutant(one, SOURCE)
    there = replace(ONE, within="pack.a:Sum.__init__", old="1, 2", new="2, 1")
    assert "self.total = total(2, 1)\n" in mutate.mutant(there, SOURCE)


@pytest.mark.parametrize(
    ("within", "old"),
    [
        ("pack.a:Sum", "self"),  # several times
        ("pack.a:Sum.__init__", "self.first"),  # in another function
        ("pack.a:Sum.mean", "self.first"),
        ("pack.a:Mean.total", "self.first"),
    ],
)
def test_a_place_that_is_gone_or_not_the_only_one_is_named(within: str, old: str) -> None:
    with pytest.raises(LookupError, match=within):
        mutate.mutant(replace(ONE, within=within, old=old), SOURCE)


def test_a_catalogue_of_the_sources_has_no_problem(tmp_path: Path) -> None:
    bugs = [Bug("a", ["#1"], mutations=[ONE]), Bug("b", own=True, absent="no place: `test_sum`")]
    assert mutate.problems(bugs, [Input("i", "an error", [ONE.test])], tree(tmp_path)) == []


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("x = 2\n", "0 times"),
        ("x = 1 + 1, 1 + 1\n", "2 times"),
        ("x = [1 + 1 for y in z] = 2\n", "syntax error"),
    ],
)
def test_a_replacement_applies_once_and_leaves_a_program(tmp_path: Path, source: str, problem: str) -> None:
    (found,) = mutate.problems([Bug("a", ["#1"], mutations=[ONE])], [], tree(tmp_path, source))
    assert problem in found


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    gone = Mutation("y", "pack.b", "1", "2", "tests/test_a.py::test_product")
    open_bracket = replace(ONE, what="z", old="f(1")
    bugs = [
        Bug("a", mutations=[ONE]),
        Bug("b", ["#2"], mutations=[gone, open_bracket]),
        Bug("c", ["#3"], absent="see `test_quotient`"),
        Bug("d", ["#4"], own=True, mutations=[replace(ONE, what="w", new="1  +  1")]),
    ]
    found = "\n".join(mutate.problems(bugs, [Input("i", "an error", ["tests/test_b.py::test_sum"])], tree(tmp_path)))
    for problem in ("a: it needs", "b.py", "z: ", "w: ", "d: it needs", "test_product", "test_quotient", "test_b.py"):
        assert problem in found

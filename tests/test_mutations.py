"""The bug catalogue is of the sources as they are: every replacement applies once, every test it names is there.

``make mutants`` runs the mutations; here only a made-up one is, to hold the tool itself.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def load() -> ModuleType:
    found = importlib.util.spec_from_file_location("mutate", ROOT / "tools" / "mutate.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["mutate"] = module  # dataclasses look their module up
    found.loader.exec_module(module)
    return module


mutate = load()
BUGS, INPUTS = mutate.catalogue()
MUTATIONS = [mutation for bug in BUGS for mutation in bug.mutations]


@functools.cache
def names(path: Path) -> set[str]:
    """Test functions of a file, as CLASS::name inside a class."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{entry.name}" for entry in node.body if isinstance(entry, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.what for mutation in MUTATIONS])
def test_the_replacement_applies_once_and_leaves_a_program(mutation) -> None:
    assert mutate.problem(mutation) is None
    text = (ROOT / mutation.file).read_text(encoding="utf-8")
    ast.parse(text.replace(mutation.old, mutation.new))


@pytest.mark.parametrize("test", sorted({m.test for m in MUTATIONS} | {t for one in INPUTS for t in one.tests}))
def test_every_test_that_is_named_exists(test: str) -> None:
    file, _, name = test.partition("::")
    assert (ROOT / file).is_file()
    assert name.partition("[")[0] in names(ROOT / file)


def test_every_bug_has_a_mutation_or_a_reason() -> None:
    for bug in BUGS:
        assert bug.references, bug.title
        assert bool(bug.mutations) != bool(bug.absent), bug.title
        for test in re.findall(r"`(test_\w+)`", bug.absent):
            assert any(test in names(path) for path in (ROOT / "tests").rglob("test_*.py")), test
    assert len({mutation.what for mutation in MUTATIONS}) == len(MUTATIONS)
    assert all(one.tests and one.outcome for one in INPUTS)


def test_the_page_is_that_of_the_catalogue_with_every_mutation_caught() -> None:
    text = mutate.PAGE.read_text(encoding="utf-8")
    results = mutate.results_of(text)
    assert [mutation.what for mutation in MUTATIONS if mutate.key(mutation) not in results] == [], "make mutants"
    assert [name for name, result in results.items() if not result.caught] == []
    assert text == mutate.page(BUGS, INPUTS, results), "run: make mutants"


class TestTool:
    @pytest.fixture
    def one(self):
        return mutate.Mutation("x", "a.py", "1 + 1", "1 - 1", "tests/test_a.py::test_sum", raises="DataError")

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
    def test_only_an_assertion_or_the_named_error_is_a_catch(self, one, message: str, caught: bool) -> None:
        assert mutate.judge(one, 1, {"test_sum": message})[0] is caught

    def test_a_passing_or_an_absent_test_is_none(self, one) -> None:
        assert mutate.judge(one, 1, {}) == (False, "the test passes with the bug in")
        assert mutate.judge(one, 0, {})[0] is False

    def test_the_text_must_be_there_once(self, one, tmp_path: Path) -> None:
        path = tmp_path / "a.py"
        assert "no file" in mutate.problem(one, tmp_path)
        path.write_text("1 + 1\n1 + 1\n")
        assert "2 times, not once" in mutate.problem(one, tmp_path)
        path.write_text("x = 1 + 1\n")
        assert mutate.problem(one, tmp_path) is None
        with pytest.raises(KeyError), mutate.mutated(tmp_path, one):
            assert path.read_text() == "x = 1 - 1\n"
            raise KeyError
        assert path.read_text() == "x = 1 + 1\n"

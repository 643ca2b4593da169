"""module:NAME, the way options name what a user wrote."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from vopd.errors import ConfigurationError
from vopd.user_code import imported, spelling_of


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_a_user.py").write_text("class Thing: pass\nFOUND = Thing()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))


def test_a_module_of_the_working_folder_is_found_and_its_object_spelled_again() -> None:
    found = imported("of_a_user:FOUND", "thing")
    assert spelling_of(found) == "of_a_user:FOUND"
    assert spelling_of(type(found)()) is None


def test_what_an_interactive_session_keeps_is_no_place_to_import_from(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = object()
    monkeypatch.setattr("builtins._", shown, raising=False)
    assert spelling_of(shown) is None


@pytest.mark.parametrize(
    ("spelling", "fact"),
    [
        ("of_a_usr:FOUND", "no module 'of_a_usr'"),
        ("json.of_a_usr.more:FOUND", "no module 'json.of_a_usr'"),
        ("of_a_user:FOUMD", "did you mean 'FOUND'"),
        ("of_a_user:OTHER", "has no 'OTHER'"),
        ("of_a_user.py:FOUND", "module:NAME"),
        ("of_a_user:", "module:NAME"),
        (":FOUND", "module:NAME"),
        (".of_a_user:FOUND", "module:NAME"),
    ],
)
def test_what_is_not_there_is_named(spelling: str, fact: str) -> None:
    with pytest.raises(ConfigurationError, match=f"thing '{spelling}'.*{fact}"):
        imported(spelling, "thing")


@pytest.mark.parametrize(
    ("line", "facts"),
    [("import there_is_no_such_package", "ModuleNotFoundError: .*there_is_no_such_package"),
     ("x = 1 / 0", "ZeroDivisionError: .*of_a_user.py, line 2"), ("x = (", "SyntaxError")],
)  # fmt: skip
def test_a_fault_inside_the_module_is_told_in_a_line_with_its_place(tmp_path: Path, line: str, facts: str) -> None:
    name = f"{re.sub('[^a-z]', '', line)}_of_a_user"
    (tmp_path / f"{name}.py").write_text(f"\n{line}\n")
    with pytest.raises(ConfigurationError, match=f"thing '{name}:FOUND' cannot be imported: {facts}"):
        imported(f"{name}:FOUND", "thing")

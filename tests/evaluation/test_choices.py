"""Every line of the table of multiple-choice completions, as a right and as a wrong answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from vopd.evaluation import grade

TABLE = Path(__file__).with_name("choices.txt")
LINES = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line and not line.startswith("# ")]
CASES = [(line.partition("::")[0].strip(), line.partition("::")[2].strip().replace("\\n", "\n")) for line in LINES]


@pytest.mark.parametrize(("letter", "text"), CASES, ids=[f"{case[0]}-{case[1][:40]}" for case in CASES])
def test_letter(letter: str, text: str) -> None:
    found = grade(text, letter if letter != "none" else "A", kind="choice")
    assert found.answer == (None if letter == "none" else letter)
    assert found.outcome == ("no_answer" if letter == "none" else "right")


def test_another_letter_is_wrong() -> None:
    assert grade("The answer is B.", "C", kind="choice").outcome == "wrong"


@pytest.mark.parametrize("gold", ["B", "b", "(B)", "B.", " B) "])
def test_gold_spellings(gold: str) -> None:
    assert grade("The answer is B.", gold, kind="choice").outcome == "right"


@pytest.mark.parametrize("gold", ["", "the mitochondrion", "BC", "3"])
def test_a_gold_without_letter_is_ungradable(gold: str) -> None:
    assert grade("The answer is B.", gold, kind="choice").outcome == "ungradable"

"""Every pair of the table, and the shape of the table itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from vopd.evaluation import grade

TABLE = Path(__file__).with_name("pairs.txt")


def read_table() -> list[tuple[str, str, str]]:
    """(outcome, answer, gold) of every line."""
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return [tuple(part.strip() for part in line.split("::"))[:3] for line in lines]  # type: ignore[misc]


PAIRS = read_table()


def test_the_table_is_large_and_has_both_sides() -> None:
    outcomes = [pair[0] for pair in PAIRS]
    assert all(len(pair) == 3 for pair in PAIRS)
    assert len(set(PAIRS)) == len(PAIRS) >= 120
    assert min(outcomes.count("right"), outcomes.count("wrong")) >= 60


@pytest.mark.parametrize(("outcome", "answer", "gold"), PAIRS, ids=[f"{pair[1]} = {pair[2]}" for pair in PAIRS])
def test_pair(outcome: str, answer: str, gold: str) -> None:
    found = grade(f"So the answer is $\\boxed{{{answer}}}$.", gold)
    assert found.outcome == outcome, found
    assert found.note == ""

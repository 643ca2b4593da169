"""The helper that looks for facts in messages."""

from __future__ import annotations

import pytest

from messages import told

SAID = "first line\nloss_top_k must be at least 1, got 0.5; did you mean 'top_k=50'? See run [a].jsonl\n"


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ("loss_top_k ... 1", True),
        ("0.5 ... at least 1", True),  # in any order
        ("[a].jsonl", True),
        ("top_k=50", True),
        ("first ... loss_top_k", False),  # on two lines
        ("loss_top", False),
        ("5", False),  # as a part of other numbers
        ("0", False),
        ("loss_top_k ... 2", False),
    ],
)
def test_every_fact_is_there_as_a_whole(facts: str, found: bool) -> None:
    assert told(facts, SAID) is found

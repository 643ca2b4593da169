"""What a message has to hold: facts (the option, the value, the way out), never the sentence around them."""

from __future__ import annotations

import re


def says(facts: str) -> str:
    """A pattern for `pytest.raises(match=...)`: a line that holds each of the facts, "a ... b ... c", in any order.

    A fact is a word, a number, a name, or a few of them that belong together; 5 is not found in 50 and not in 0.5.
    """
    found = (re.escape(fact).replace(r"\ ", r"\s+") for fact in facts.split(" ... "))
    return "(?m)^" + "".join(rf"(?=.*(?<![\w.]){fact}(?!\w|\.\d))" for fact in found)


def told(facts: str, text: str) -> bool:
    """Whether a line of `text` says the facts."""
    return re.search(says(facts), text) is not None

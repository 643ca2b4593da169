"""Grade completions against reference ("gold") answers: mathematics, multiple choice, and text in answer tags."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from vopd.errors import ConfigurationError, DataError, check_known

from .choices import gold_letter, read_choice
from .extract import last_box, math_answer, strip_thinking, tagged_answer
from .latex import normalize
from .pool import Reply, shared_pool
from .structure import plainly_readable, same

Outcome = Literal["right", "wrong", "no_answer", "ungradable"]
KINDS = ("math", "choice", "tags")
LIMIT_S = 5
_REMEMBERED = 50_000
_LONGEST = 2000  # characters; a longer text is not an answer


class Grade(NamedTuple):
    """The verdict on one completion.

    Attributes:
        outcome: "right", "wrong", "no_answer" (nothing to grade: no box, or an unclosed thinking block), or
            "ungradable" (the reference answer cannot be read; does not count against the model).
        answer: the answer read from the completion, None without one.
        boxed: whether it was in a ``\\boxed{}``.
        note: "timed out" if the comparison exceeded its limit, "too long" beyond 2,000 characters, "worker died" if
            the worker crashed on every attempt, else "".
    """

    outcome: Outcome
    answer: str | None = None
    boxed: bool = False
    note: str = ""


def grade(prediction_text: str, gold: str, kind: str = "math", *, limit_s: int = LIMIT_S) -> Grade:
    """Grade one completion.

    For "math", the answer is the last balanced ``\\boxed{}`` outside the thinking, compared mathematically. A text
    without a box has an answer only if it is a single expression. For "choice", the answer is the letter that the text
    decides on. For "tags", it is the text in the last ``<answer>`` tags, which must be the reference answer.

    Args:
        prediction_text: the completion, including its thinking.
        gold: the reference answer, in LaTeX with or without dollars or a box; for "choice" a letter.
        kind: "math", "choice" or "tags".
        limit_s: time limit of a comparison, a whole number of seconds; beyond it the answer is "wrong", with a note.

    Raises:
        ConfigurationError: the kind is unknown, or the limit is not a whole number of seconds.
        DataError: the completion or the reference answer is not text.
        MissingExtraError: math-verify is needed but not installed.
    """
    return grade_many([(prediction_text, gold)], kind, limit_s=limit_s)[0]


def grade_many(pairs: Iterable[tuple[str, str]], kind: str = "math", *, limit_s: int = LIMIT_S) -> list[Grade]:
    """Grade (completion, reference answer) pairs like `grade`, in order; hard comparisons run in parallel worker
    processes."""
    check_known("kind", kind, KINDS)
    if isinstance(limit_s, bool) or not isinstance(limit_s, int) or limit_s < 1:
        raise ConfigurationError(f"limit_s must be a whole number of seconds, 1 or more, not {limit_s!r}")
    pairs = list(pairs)
    for index, pair in enumerate(pairs):
        if not all(isinstance(text, str) for text in pair):
            raise DataError(f"pair {index}: completion and gold must be text; pass str(gold) if it is a number")
    if kind == "choice":
        return [_grade_choice(text, gold) for text, gold in pairs]
    if kind == "tags":
        return [_grade_tags(text, gold) for text, gold in pairs]
    return _grade_math(pairs, limit_s)


def compare_many(pairs: Sequence[tuple[str, str]], *, limit_s: int = LIMIT_S) -> list[Reply]:
    """Compare (reference answer, answer) pairs mathematically: "right", "wrong" or "ungradable", in order.

    Plain numbers and words are decided here; every other distinct pair is decided once, by a worker.
    """
    keys = [_key(gold, answer) for gold, answer in pairs]
    known = {key: reply for key in set(keys) if (reply := _quick(*key)) is not None}
    open_keys = [key for key in dict.fromkeys(keys) if key not in known]
    if open_keys:
        for key, reply in zip(open_keys, shared_pool().ask_many(open_keys, limit_s), strict=True):
            known[key] = reply
            _remember(key, reply)
    return [known[key] for key in keys]


def ungradable(golds: Sequence[str], kind: str) -> list[bool]:
    """Whether each reference answer cannot be read; this does not depend on any completion."""
    check_known("kind", kind, KINDS)
    if kind == "choice":
        return [gold_letter(gold) is None for gold in golds]
    if kind == "tags":
        return [False] * len(golds)
    # Compare with any other text: its own would be equal without being read.
    return [reply.verdict == "ungradable" for reply in compare_many([(gold, "0") for gold in golds])]


def _grade_math(pairs: list[tuple[str, str]], limit_s: int) -> list[Grade]:
    kept = [strip_thinking(text) for text, _ in pairs]
    read = [(None, False) if text is None else math_answer(text) for text in kept]
    asked = [(last_box(gold) or gold, answer) for (_, gold), (answer, _) in zip(pairs, read) if answer is not None]
    replies = iter(compare_many(asked, limit_s=limit_s))
    grades = []
    for answer, boxed in read:
        verdict, note = ("no_answer", "") if answer is None else next(replies)
        grades.append(Grade(verdict, answer, boxed, note))  # type: ignore[arg-type]
    return grades


def _grade_choice(text: str, gold: str) -> Grade:
    kept = strip_thinking(text)
    letter = None if kept is None else read_choice(kept)
    if kept is None or letter is None:
        return Grade("no_answer")
    expected, boxed = gold_letter(gold), last_box(kept) is not None
    if expected is None:
        return Grade("ungradable", letter, boxed)
    return Grade("right" if letter == expected else "wrong", letter, boxed)


def _grade_tags(text: str, gold: str) -> Grade:
    answer = tagged_answer(text)
    return Grade("no_answer") if answer is None else Grade("right" if answer == gold else "wrong", answer)


def _key(gold: str, answer: str) -> tuple[str, str]:
    # A side that is too long is cut to just over the limit, and is rejected by its length.
    return tuple(normalize(text) if len(text) <= _LONGEST else text[: _LONGEST + 1] for text in (gold, answer))  # type: ignore[return-value]


def _quick(gold: str, answer: str) -> Reply | None:
    """The reply if plain arithmetic and text are enough, or if it is cached."""
    if len(gold) > _LONGEST or len(answer) > _LONGEST:
        return Reply("ungradable" if len(gold) > _LONGEST else "wrong", "too long")
    try:
        verdict = same(gold, answer, lambda one, other: None) if plainly_readable(gold) else None
    except RecursionError:  # thousands of nested brackets: the worker reports that it cannot read them
        return None
    return _replies.get((gold, answer)) if verdict is None else Reply("right" if verdict else "wrong")


# Cache of the workers' latest replies, because samples of one problem repeat each other.
_replies: dict[tuple[str, str], Reply] = {}
_lock = threading.Lock()


def _remember(key: tuple[str, str], reply: Reply) -> None:
    if reply.note:
        return  # a timeout of a busy machine must not be remembered
    with _lock:
        _replies[key] = reply
        if len(_replies) > _REMEMBERED:
            del _replies[next(iter(_replies))]

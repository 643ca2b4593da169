"""Problems of a reasoning_gym task, with the library's own question text and its own verifier."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from vopd.errors import ConfigurationError, DataError, check_at_least, require

# So many repeats in a row mean that the task has no more distinct questions to give.
_REPEATS_BEFORE_GIVING_UP = 2000


@dataclass(frozen=True)
class Problem:
    """One problem: the library's question text, its reference answer, and what its verifier needs.

    `task` is the reasoning_gym name, `metadata` the item's own metadata (operands, counts, difficulty).
    """

    task: str
    question: str
    answer: str
    metadata: dict[str, Any] = field(default_factory=dict, hash=False, repr=False)


def stream_problems(name: str, seed: int, **options: Any) -> Iterator[Problem]:
    """Yield problems of the reasoning_gym task `name` without end, no question text twice.

    The library draws item i of seed s from `Random(s + i)`, so that neighbouring seeds give the same problems
    shifted by one place. The seed is therefore spread first: two seeds give two unrelated sequences.

    Raises:
        ConfigurationError: the task is unknown or its options are wrong.
        DataError: the task has run out of distinct questions.
    """
    library, spread = require("reasoning_gym", "train"), random.Random(f"{name} {seed}").getrandbits(60)
    try:
        dataset = library.create_dataset(name, seed=spread, **options)
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigurationError(f"reasoning_gym task '{name}': {error}") from error
    seen: set[str] = set()
    repeats = index = 0
    while repeats < _REPEATS_BEFORE_GIVING_UP:
        item = dataset[index]
        index += 1
        if item["question"] in seen:
            repeats += 1
            continue
        repeats = 0
        seen.add(item["question"])
        yield Problem(name, item["question"], item["answer"], item["metadata"])
    raise DataError(
        f"reasoning_gym task '{name}' has only about {len(seen)} distinct questions with options {options}; "
        "ask for fewer problems or widen the options"
    )


def reasoning_problems(name: str, count: int, seed: int, **options: Any) -> list[Problem]:
    """Return `count` distinct problems of the reasoning_gym task `name`; the same seed gives the same list.

    `options` go to the task's own configuration, for example `min_terms=3` for `chain_sum`.

    Raises:
        ConfigurationError: the task is unknown, its options are wrong or `count` is negative.
        DataError: the task has fewer than `count` distinct questions.
    """
    check_at_least("count", count, 0)
    return list(islice(stream_problems(name, seed, **options), count))


def extract_answer(completion: str) -> str | None:
    """Return the text in the last `<answer>` tags of a completion, stripped, or None without such tags."""
    answer: str | None = require("reasoning_gym.utils", "train").extract_answer(completion)
    return answer


def score(problem: Problem, completion: str) -> float:
    """Return the library's score in [0, 1] of the answer that a completion gives in `<answer>` tags.

    0 without tags. Some tasks give partial credit; `is_right` asks for the full score.
    """
    answer = extract_answer(completion)
    if answer is None:
        return 0.0
    verifier = require("reasoning_gym", "train").get_score_answer_fn(problem.task)
    entry = {"question": problem.question, "answer": problem.answer, "metadata": problem.metadata}
    return float(verifier(answer, entry))


def is_right(problem: Problem, completion: str) -> bool:
    """True where the library's verifier gives the completion's answer full marks."""
    return score(problem, completion) >= 1.0

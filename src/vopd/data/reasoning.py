"""Problems of a reasoning_gym task, with the library's question text and verifier."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from vopd.errors import ConfigurationError, DataError, check_at_least, require

# After so many repeats in a row, the task is considered to have no more distinct questions.
_REPEATS_BEFORE_GIVING_UP = 2000


@dataclass(frozen=True)
class Problem:
    """One problem of a reasoning_gym task.

    Attributes:
        task: name of the reasoning_gym task.
        question: the library's question text.
        answer: the reference answer.
        metadata: metadata for the library's verifier (operands, counts, difficulty).
    """

    task: str
    question: str
    answer: str
    metadata: dict[str, Any] = field(default_factory=dict, hash=False, repr=False)


def stream_problems(name: str, seed: int, **options: Any) -> Iterator[Problem]:
    """Yield problems of the reasoning_gym task `name` indefinitely, without repeating a question.

    The library generates item i of seed s from `Random(s + i)`, so neighbouring seeds would give the same problems
    shifted by one. The seed is therefore hashed first: two seeds give two unrelated sequences.

    Raises:
        ConfigurationError: the task is unknown or its options are invalid.
        DataError: the task has no more distinct questions.
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
        "request fewer problems or widen the options"
    )


def reasoning_problems(name: str, count: int, seed: int, **options: Any) -> list[Problem]:
    """Return `count` distinct problems of the reasoning_gym task `name`; the same seed gives the same list.

    `options` are options of the task, for example `min_terms=3` for `chain_sum`.

    Raises:
        ConfigurationError: the task is unknown, its options are invalid, or `count` is negative.
        DataError: the task has fewer than `count` distinct questions.
    """
    check_at_least("count", count, 0)
    return list(islice(stream_problems(name, seed, **options), count))


def extract_answer(completion: str) -> str | None:
    """Return the stripped text in the last `<answer>` tags of a completion, or None if there are none."""
    answer: str | None = require("reasoning_gym.utils", "train").extract_answer(completion)
    return answer


def score(problem: Problem, completion: str) -> float:
    """Return the library's score in [0, 1] of the answer in the `<answer>` tags of a completion; 0 without tags.

    Some tasks give partial credit; `is_right` requires the full score.
    """
    answer = extract_answer(completion)
    if answer is None:
        return 0.0
    verifier = require("reasoning_gym", "train").get_score_answer_fn(problem.task)
    entry = {"question": problem.question, "answer": problem.answer, "metadata": problem.metadata}
    return float(verifier(answer, entry))


def is_right(problem: Problem, completion: str) -> bool:
    """Return whether the library's verifier gives the completion's answer the full score."""
    return score(problem, completion) >= 1.0

"""Reward functions by name: graders against a reference answer, and reasoning_gym's verifiers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

from vopd.data.reasoning import Problem, score
from vopd.errors import VOPDError, check_known
from vopd.evaluation.grading import KINDS, grade_many

logger = logging.getLogger("vopd")

RewardFunction = Callable[..., Sequence[float | None]]

GRADED = KINDS
REASONING_GYM = "reasoning_gym"
# Columns of a task's problems (`vopd.data.sources`).
_PROBLEM_COLUMNS = ("task", "answer", "metadata")


def named_reward(name: str, column: str) -> tuple[RewardFunction, tuple[str, ...]]:
    """The reward function called `name` and the columns of the dataset that it needs.

    Args:
        name: "math", "choice" or "tags" (1 for the right answer, 0 for a wrong one or none), or "reasoning_gym" (the
            score in [0, 1] of the task's own verifier).
        column: the column with the reference answers of the first three.

    Raises:
        ConfigurationError: the name is unknown.
    """
    check_known("reward function", name, (*GRADED, REASONING_GYM, "module:function"))
    return (verified, _PROBLEM_COLUMNS) if name == REASONING_GYM else (_graded(name, column), (column,))


def text_of(completion: Any) -> str:
    """The text of a completion: itself, or the assistant's last message if prompts are conversations."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def _graded(kind: str, column: str) -> RewardFunction:
    def graded(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        golds = columns[column]
        places = [place for place, gold in enumerate(golds) if gold is not None and gold != ""]
        grades = grade_many([(text_of(completions[place]), str(golds[place])) for place in places], kind)
        rewards = {
            place: float(grade.outcome == "right")
            for place, grade in zip(places, grades, strict=True)
            if grade.outcome != "ungradable"  # the student is not to blame for a bad reference answer
        }
        return [rewards.get(place) for place in range(len(completions))]

    return graded


def verified(completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """The score of each completion by the verifier of its row's reasoning_gym task; None for rows without a task."""
    questions = next((columns[name] for name in ("problem", "question") if name in columns), [""] * len(completions))
    rows = zip(completions, questions, *(columns[name] for name in _PROBLEM_COLUMNS), strict=True)
    return [_verified(*row) for row in rows]


def _verified(completion: Any, question: str, task: str | None, answer: Any, metadata: Any) -> float | None:
    if task is None:
        return None
    facts = json.loads(metadata) if isinstance(metadata, str) else (metadata or {})
    try:
        return score(Problem(task, question, str(answer), facts), text_of(completion))
    except VOPDError:
        raise
    except Exception as error:  # the library's verifiers raise on some wrong answers
        logger.warning("reasoning_gym's verifier of '%s' failed on a completion, which scores 0: %s", task, error)
        return 0.0

"""How the answers of a set of problems are graded: by a kind of answer, or by a function of the user's."""

from __future__ import annotations

from collections.abc import Sequence

from vopd.errors import DataError, check_known
from vopd.scoring import Scorer

from ..grading import KINDS, Grade
from .fields import Question

_FUNCTION = "module:function"


def check_kind(kind: str | None) -> None:
    """Raises ConfigurationError if `kind` is none of KINDS, and no function that can be imported."""
    if kind is not None and own_grader(kind) is None:
        check_known("kind", kind, (*KINDS, _FUNCTION))


def own_grader(kind: str) -> Scorer | None:
    """The function that `kind` names as module:function; None for a kind of answer."""
    return Scorer.of(kind, "grader") if ":" in kind else None


def check_columns(grader: Scorer, questions: Sequence[Question], where: str) -> None:
    """Raises DataError if a function needs an argument that the problems of `where` do not have as a column."""
    columns = _arguments([(question, "") for question in questions])
    for name in grader.needed:
        if name not in columns:
            raise DataError(
                f"grader '{grader.name}' needs a column '{name}', but {where} has {', '.join(questions[0].row)}; add it"
            )


def grade_by(grader: Scorer, pairs: Sequence[tuple[Question, str]]) -> list[Grade]:
    """Grade (question, completion) pairs by a function: right where it gives 1 or more, ungradable where None."""
    scores = grader(_arguments(pairs))
    return [
        Grade("right" if score >= 1 else "wrong" if score < 1 else "ungradable", text)
        for score, (_, text) in zip(scores, pairs, strict=True)
    ]


def _arguments(pairs: Sequence[tuple[Question, str]]) -> dict[str, list[object]]:
    """As a reward function gets them: the columns of the rows by name, `answer` if there is none, texts."""
    columns = dict.fromkeys(name for question, _ in pairs for name in question.row)
    return {
        "answer": [question.gold for question, _ in pairs],
        **{name: [question.row.get(name) for question, _ in pairs] for name in columns},
        "prompts": [question.text for question, _ in pairs],
        "completions": [text for _, text in pairs],
    }

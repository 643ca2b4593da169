"""Held-out problems of a comparison, and grading a model's answers to them.

A problem is a row with `prompt` and `answer`. One that also has `task` and `metadata` is a
reasoning_gym problem, graded by the library's verifier; the others are graded as `kind` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vopd.data.local_data import local_rows
from vopd.data.reasoning import Problem
from vopd.errors import DataError
from vopd.evaluation.benchmarks import TASK, Question, check_kind
from vopd.evaluation.journal import write_lines
from vopd.evaluation.scores import grade_completions


@dataclass(frozen=True)
class HeldOut:
    """One problem: the prompt as the models see it, the correct answer, and what a library's verifier needs."""

    prompt: str
    answer: str
    task: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(problem: Problem, prompt: str) -> HeldOut:
        return HeldOut(prompt, problem.answer, problem.task, dict(problem.metadata))

    def question(self, kind: str) -> Question:
        """The problem for grading: by its task's verifier if it has a task, else as `kind` says."""
        if self.task is None:
            return Question("", self.prompt, self.answer, kind, row=vars(self))
        problem = Problem(self.task, self.prompt, self.answer, self.metadata)
        return Question("", self.prompt, self.answer, TASK, problem)


def write_held_out(problems: Sequence[HeldOut], path: str | Path) -> None:
    """Write problems as JSON lines."""
    write_lines(Path(path), map(vars, problems))


def read_held_out(path: str | Path, count: int | None = None) -> list[HeldOut]:
    """Read the first `count` problems of a file, a pattern of files, or a folder.

    Raises:
        DataError: no rows, or a row without a prompt or an answer.
    """
    rows = local_rows(str(path))[:count]
    if not rows:
        raise DataError(f"'{path}' has no problems")
    return [_problem(row, place) for place, row in rows]


def _problem(row: dict[str, Any], place: str) -> HeldOut:
    prompt, answer = row.get("prompt", row.get("problem")), row.get("answer")
    if not isinstance(prompt, str) or not prompt or answer is None:
        raise DataError(f"{place} needs a text 'prompt' and an 'answer', on which accuracy is measured")
    return HeldOut(prompt, str(answer), row.get("task"), row.get("metadata") or {})


def outcomes(problems: Sequence[HeldOut], texts: Sequence[str], kind: str) -> list[bool]:
    """Whether each completion is right.

    Args:
        kind: of the problems without a library's verifier, as in `vopd.evaluation.benchmarks.load_benchmark`.

    Raises:
        ConfigurationError: unknown kind.
    """
    check_kind(kind)
    questions = [problem.question(kind) for problem in problems]
    return [grade.outcome == "right" for grade in grade_completions(questions, texts)]

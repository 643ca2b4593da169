"""From completions to scores: grades by the kind of the question, then avg@k, pass@k, maj@k and rates.

avg@k and pass@k are in `vopd.statistics`; all intervals there and here are bootstrapped over problems.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vopd.data.reasoning import extract_answer, is_right
from vopd.errors import DataError, counted
from vopd.statistics import Score, avg_at_k, mean_score, pass_at_k

from .benchmarks import TASK, Benchmark, Question, grade_by, own_grader
from .completions import Record
from .grading import KINDS, Grade, compare_many, grade_many, ungradable

# Suggested prompt templates that ask for a readable answer, by kind.
FORM_TEMPLATES = {
    "math": r"{problem} Put your final answer within \boxed{}.",
    **dict.fromkeys(("tags", TASK), "{problem} Answer in <answer></answer> tags."),
}


def grade_completions(questions: Sequence[Question], completions: Sequence[str]) -> list[Grade]:
    """Grade one completion per question, in order, for evaluations, training runs and comparisons alike.

    The question's kind decides how: "math", "choice" and "tags" like `vopd.evaluation.grade`; "task" by the task's own
    verifier, where only the full score is right; module:function by that function, where 1 is right.

    Raises:
        ConfigurationError: a kind is unknown, or a function cannot be imported or returns something else than numbers.
    """
    pairs = list(zip(questions, completions, strict=True))
    grades: dict[int, Grade] = {}
    for kind in dict.fromkeys(question.kind for question in questions):
        places = [place for place, question in enumerate(questions) if question.kind == kind]
        grades.update(zip(places, _grade(kind, [pairs[place] for place in places]), strict=True))
    return [grades[place] for place in range(len(pairs))]


def _grade(kind: str, pairs: Sequence[tuple[Question, str]]) -> list[Grade]:
    if (grader := own_grader(kind)) is not None:
        return grade_by(grader, pairs)
    if kind == TASK:
        return [_grade_task(question, text) for question, text in pairs]
    return grade_many([(text, question.gold) for question, text in pairs], kind)


def _grade_task(question: Question, completion: str) -> Grade:
    answer = extract_answer(completion)
    if answer is None:
        return Grade("no_answer")
    return Grade("right" if is_right(question.problem, completion) else "wrong", answer)


def score(checkpoint: str, benchmark: Benchmark, drawn: Sequence[Record]) -> tuple[dict[str, Any], list[Record]]:
    """Grade and score the completions of one checkpoint on one benchmark, with equally many for each question.

    Returns:
        The entry of results.json and the lines of samples.jsonl: each record with its reference answer and grade, in
        order.

    Raises:
        DataError: every problem is left out, because no reference answer can be read.
    """
    records = sorted(drawn, key=lambda record: (record["problem"], record["sample"]))
    asked = [benchmark.questions[record["problem"]] for record in records]
    grades = grade_completions(asked, [_with_open_thinking(record) for record in records])
    lines = [
        {"checkpoint": checkpoint, "benchmark": benchmark.name, "id": question.id}
        | {**record, "gold": question.gold, **grade._asdict()}
        for question, record, grade in zip(asked, records, grades, strict=True)
    ]
    scores, per_problem = _scores(benchmark, grades)
    entry = {
        "checkpoint": checkpoint,
        "benchmark": benchmark.name,
        **scores,
        "format_rate": _mean([g.answer is not None and (g.boxed or benchmark.kind != "math") for g in grades]),
        "truncation_rate": _mean([record["truncated"] for record in records]),
        "timed_out": sum(grade.note == "timed out" for grade in grades),
        "mean_length": _mean([record["tokens"] for record in records]),
        "per_problem": per_problem,
    }
    return entry, lines


def _with_open_thinking(record: Record) -> str:
    """The completion, with the thinking tag that the chat template may have opened at the end of the prompt."""
    opened = record["prompt"].rstrip().endswith("<think>")
    return "<think>" + record["completion"] if opened else record["completion"]


def _scores(benchmark: Benchmark, grades: Sequence[Grade]) -> tuple[dict[str, Any], dict[str, float]]:
    """avg@k, maj@k, and pass@k for k = 1, 2, 4, ... and the number of samples, over the problems that are not left
    out; and the share of right samples for each of these problems."""
    questions, kind = benchmark.questions, benchmark.kind
    golds = [question.gold for question in questions]
    rows = _rows(grades, len(questions))
    unread = [all(grade.outcome == "ungradable" for grade in row) for row in rows]
    left_out = ungradable(golds, kind) if kind in KINDS else unread
    majority = _majority_score(rows, left_out, kind)
    scored = [(question.id, _right(row)) for question, row, skip in zip(questions, rows, left_out) if not skip]
    samples, kept = len(rows[0]), [right for _, right in scored]
    ks = sorted({samples, *(2**power for power in range(samples.bit_length()))})
    scores = {
        "problems": len(kept),
        "ungradable": sum(left_out),
        "samples": samples,
        "avg_at_k": asdict(avg_at_k(kept)),
        "pass_at_k": {str(k): asdict(pass_at_k(kept, k)) for k in ks},
        "maj_at_k": asdict(majority),
    }
    return scores, {identity: _mean(row) for identity, row in scored}


def maj_at_k(answers: Sequence[Sequence[str]], golds: Sequence[str], kind: str = "math") -> Score:
    """Share of problems whose most frequent answer is right; equal answers vote together.

    Answers are equal if they are mathematically equal (1/2 and 0.5) or name the same option. Completions without an
    answer form a class that is never right; classes with equally many votes share the credit. Problems whose
    reference answer cannot be read are left out.

    Args:
        answers: for each problem, its k completion texts.
        golds: the reference answer of each problem.
        kind: "math" or "choice".

    Raises:
        DataError: there are no problems, not exactly one reference answer per problem, problems with different
            numbers of completions or none, or no readable reference answer.
        ConfigurationError: the kind is unknown.
    """
    if len(answers) != len(golds):
        raise DataError(
            f"maj@k needs one reference answer per problem: {counted(len(answers), 'problem')}, "
            f"{counted(len(golds), 'reference answer')}"
        )
    sizes = {len(row) for row in answers}
    if len(sizes) != 1 or 0 in sizes:
        raise DataError("maj@k needs the same number of completions for every problem, at least one")
    grades = grade_many([(text, gold) for row, gold in zip(answers, golds) for text in row], kind)
    return _majority_score(_rows(grades, len(golds)), ungradable(golds, kind), kind)


def _majority_score(grades: Sequence[Sequence[Grade]], left_out: Sequence[bool], kind: str) -> Score:
    kept = [row for row, skip in zip(grades, left_out) if not skip]
    if not kept:
        raise DataError("no reference answer can be read, so there is nothing to score; check the problems' answers")
    classes = answer_classes([[grade.answer for grade in row] for row in kept], kind)
    return mean_score([majority_credit(row, _right(grades)) for row, grades in zip(classes, kept)])


def majority_credit(classes: Sequence[int | None], right: Sequence[bool]) -> float:
    """Credit of one problem: 1 / (number of winning classes) for each winning class that is right.

    Args:
        classes: class of each sample, None for no answer.
        right: whether each sample is right; a class is right if its first sample is.
    """
    votes = Counter(classes)
    most = max(votes.values())
    winners = [name for name, count in votes.items() if count == most]
    return sum(name is not None and right[classes.index(name)] for name in winners) / len(winners)


def answer_classes(answers: Sequence[Sequence[str | None]], kind: str) -> list[list[int | None]]:
    """Classes of equal answers in each problem, numbered by first appearance; None for no answer.

    Math answers are compared with the first answer of a class; other kinds ("choice", "task") as text.
    """
    waiting = [list(dict.fromkeys(answer for answer in row if answer is not None)) for row in answers]
    classes: list[dict[str | None, int]] = [{} for _ in answers]
    number = 0
    while any(waiting):
        # Each round takes the first answer without a class in every problem, and compares the others with it, all
        # problems at once.
        pairs = [(row[0], other) for row in waiting for other in row[1:]]
        verdicts = [reply.verdict for reply in compare_many(pairs)] if kind == "math" else ["wrong"] * len(pairs)
        same = iter(verdicts)
        for row, found in zip(waiting, classes):
            equal = row[:1] + [other for other in row[1:] if next(same) == "right"]
            found |= dict.fromkeys(equal, number)
            row[:] = [answer for answer in row if answer not in equal]
        number += 1
    return [[found.get(answer) for answer in row] for found, row in zip(classes, answers)]


def _rows(grades: Sequence[Grade], problems: int) -> list[Sequence[Grade]]:
    """Grades grouped by problem, from a flat list of (problems x samples)."""
    samples = len(grades) // problems
    return [grades[start : start + samples] for start in range(0, len(grades), samples)]


def _right(row: Sequence[Grade]) -> list[bool]:
    return [grade.outcome == "right" for grade in row]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

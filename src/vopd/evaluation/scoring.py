"""Grades and scores of what was drawn on one benchmark."""

from __future__ import annotations

from typing import Any

from .benchmarks.definitions import Benchmark
from .completions import Record
from .grading.grade import Grade, grade_many
from .results import entry
from .scores import summarise, ungradable


def graded(benchmark: Benchmark, drawn: list[list[Record]]) -> list[list[Grade]]:
    """The grade of every record of (problems, samples), in the pool of killable workers."""
    flat = [(question, record) for question, row in zip(benchmark.questions, drawn) for record in row]
    if benchmark.kind == "task":
        grades = [_grade_task(question.extra["problem"], record["completion"]) for question, record in flat]
    else:
        pairs = [(_with_open_thinking(record), question.gold) for question, record in flat]
        grades = grade_many(pairs, benchmark.kind)
    found = iter(grades)
    return [[next(found) for _ in row] for row in drawn]


def _with_open_thinking(record: Record) -> str:
    """The completion, after the thinking tag that the chat template may have opened at the end of the prompt."""
    opened = record["prompt"].rstrip().endswith("<think>")
    return "<think>" + record["completion"] if opened else record["completion"]


def _grade_task(problem: Any, completion: str) -> Grade:
    from vopd.data.reasoning import extract_answer, is_right

    answer = extract_answer(completion)
    if answer is None:
        return Grade("no_answer")
    return Grade("right" if is_right(problem, completion) else "wrong", answer)


def _left_out(benchmark: Benchmark) -> list[bool]:
    if benchmark.kind == "task":
        return [False] * len(benchmark.questions)
    return ungradable([question.gold for question in benchmark.questions], benchmark.kind)


def score(
    checkpoint: str, benchmark: Benchmark, drawn: list[list[Record]], grades: list[list[Grade]]
) -> dict[str, Any]:
    """The entry of results.json for one checkpoint on one benchmark: scores with intervals, rates, counts."""
    left_out = _left_out(benchmark)
    summary = summarise(
        grades,
        left_out,
        benchmark.kind,
        [[record["truncated"] for record in row] for row in drawn],
        [[record["tokens"] for record in row] for row in drawn],
    )
    shares = {
        question.id: sum(found.outcome == "right" for found in row) / len(row)
        for question, row, skip in zip(benchmark.questions, grades, left_out)
        if not skip
    }
    return entry(checkpoint, benchmark.name, summary, shares)


def sample_lines(
    checkpoint: str, benchmark: Benchmark, drawn: list[list[Record]], grades: list[list[Grade]]
) -> list[Record]:
    """A line of samples.jsonl for every record: what was drawn, the gold and the grade."""
    return [
        {
            "checkpoint": checkpoint,
            "benchmark": benchmark.name,
            "id": question.id,
            **record,
            "gold": question.gold,
            **found._asdict(),
        }
        for question, row, found_row in zip(benchmark.questions, drawn, grades)
        for record, found in zip(row, found_row)
    ]

"""Contamination: questions of a benchmark that occur among the training prompts."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vopd.data.conversations import text_of
from vopd.data.prompts import read_prompts
from vopd.errors import counted

from .definitions import DEFINITIONS, Benchmark, load_benchmark
from .fields import Question

logger = logging.getLogger(__name__)

_WORDS = 8
_SHARE = 0.8


@dataclass(frozen=True)
class Overlap:
    """A question that occurs in a training prompt: its id, the index of the prompt, and the share of its text found
    there."""

    question_id: str
    prompt: int
    share: float


def contamination(questions: Sequence[Question], prompts: Iterable[Any]) -> list[Overlap]:
    """Questions of which at least 80 % of the text occurs in one training prompt, a text or a conversation.

    Texts are compared in lower case as sequences of words and signs, by their runs of eight. A shorter question must
    occur completely. Instructions around a question in the training prompt, or small edits, do not hide it. Questions
    of a task, which differ from each other in only a few words, must occur completely.

    Returns:
        For each such question, the prompt that contains most of it, in the order of the questions.
    """
    wanted = [_runs(question.text) for question in questions]
    holders = defaultdict(list)
    for index, runs in enumerate(wanted):
        for run in runs:
            holders[run].append(index)
    lengths = {_WORDS, *(len(next(iter(runs)).split()) for runs in wanted if len(runs) == 1)}
    best: dict[int, tuple[float, int]] = {}
    for number, prompt in enumerate(map(text_of, prompts)):
        for index, found in _found(prompt, lengths, holders).items():
            part = found / len(wanted[index])
            least = 1.0 if questions[index].kind == "task" else _SHARE
            if part >= least and part > best.get(index, (0.0, 0))[0]:
                best[index] = (part, number)
    return [Overlap(questions[index].id, best[index][1], best[index][0]) for index in sorted(best)]


def warn_of_overlaps(benchmarks: Sequence[Benchmark], prompts: Sequence[Any]) -> dict[str, list[Overlap]]:
    """The questions of each benchmark that occur among the training prompts. Logs a warning with their number."""
    found = {benchmark.name: contamination(benchmark.questions, prompts) for benchmark in benchmarks}
    for name, overlaps in found.items():
        if overlaps:
            occur = "occurs" if len(overlaps) == 1 else "occur"
            count = counted(len(overlaps), "question")
            logger.warning("%s of %s %s among the training prompts", count, name, occur)
    return found


def training_texts(source: str) -> list[Any]:
    """Prompts of a training set: a benchmark's name such as dapo_math, a file, or a Hub id, read by `read_prompts`.

    Raises:
        DataError: the source cannot be read.
    """
    if source.partition("=")[0] in DEFINITIONS:
        return [question.text for question in load_benchmark(source).questions]
    return list(read_prompts(source).dataset["prompt"])


def _found(prompt: str, lengths: set[int], holders: dict[str, list[int]]) -> dict[int, int]:
    """How many runs of each question occur in a prompt, for runs of these lengths."""
    counts: dict[int, int] = defaultdict(int)
    for run in set().union(*(_runs(prompt, length) for length in lengths)):
        for index in holders.get(run, ()):
            counts[index] += 1
    return counts


def _runs(text: str, length: int = _WORDS) -> set[str]:
    words = re.findall(r"[a-z]+|\d+|[^\sa-z\d]", text.lower())
    if len(words) <= length:
        return {" ".join(words)} if words else set()
    return {" ".join(words[start : start + length]) for start in range(len(words) - length + 1)}

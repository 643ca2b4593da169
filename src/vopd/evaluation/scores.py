"""Metrics over graded completions: majority vote, rates, paired comparison.

avg@k and pass@k are in `vopd.statistics`; every interval there and here is a bootstrap over problems.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from vopd.errors import ConfigurationError, DataError
from vopd.statistics import Score, avg_at_k, mean_score, pass_at_k

from .grading.grade import KINDS, Grade, compare_many, grade_many

Classes = list[int | None]


def maj_at_k(answers: Sequence[Sequence[str]], golds: Sequence[str], kind: str = "math") -> Score:
    """Share of problems whose most frequent answer is right, votes counted over answers that are equal.

    Answers vote together where they are equal as mathematics (1/2 and 0.5) or name the same option.
    Completions without an answer are a class of their own that is never right; classes with equally many
    votes share the credit. Problems whose gold answer cannot be read are left out.

    Args:
        answers: for each problem, its k completion texts.
        golds: the gold answer of each problem.
        kind: "math" or "choice".

    Raises:
        DataError: no problems, not one gold for each, a problem without or with fewer completions, or no
        readable gold. ConfigurationError: unknown kind.
    """
    if len(answers) != len(golds):
        raise DataError(f"maj@k needs one gold answer a problem: {len(answers)} problems, {len(golds)} golds")
    sizes = {len(row) for row in answers}
    if len(sizes) != 1 or 0 in sizes:
        raise DataError("maj@k needs problems with equally many completions, at least one")
    pairs = [(text, gold) for row, gold in zip(answers, golds) for text in row]
    flat = iter(grade_many(pairs, kind))
    grades = [[next(flat) for _ in row] for row in answers]
    return majority_score(grades, ungradable(golds, kind), kind)


def majority_score(grades: Sequence[Sequence[Grade]], left_out: Sequence[bool], kind: str) -> Score:
    """maj@k from the grades of (problems, samples); problems with a true `left_out` do not count."""
    kept = [row for row, skip in zip(grades, left_out) if not skip]
    if not kept:
        raise DataError("no gold answer can be read, so there is nothing to score; see the answers of the problems")
    classes = answer_classes([[found.answer for found in row] for row in kept], kind)
    return mean_score([majority_credit(row, _right(found)) for row, found in zip(classes, kept)])


def majority_credit(classes: Sequence[int | None], right: Sequence[bool]) -> float:
    """Credit of one problem: 1 / (number of winning classes) for each winning class that is right.

    Args:
        classes: class of each sample, None for no answer.
        right: whether each sample is right; a class is right where its first sample is.
    """
    votes = Counter(classes)
    most = max(votes.values())
    winners = [name for name, count in votes.items() if count == most]
    return sum(name is not None and right[classes.index(name)] for name in winners) / len(winners)


def answer_classes(answers: Sequence[Sequence[str | None]], kind: str) -> list[Classes]:
    """Classes of equal answers in each problem, numbered by first appearance; None where there is no answer.

    Mathematics is compared with the first answer of a class; other kinds ("choice", "task") as text.
    """
    problems = [_Problem(row) for row in answers]
    while kind == "math" and any(problem.open for problem in problems):
        # Each round takes the first answer without a class in every problem, and compares the others with it,
        # all problems at once.
        rounds = [problem.next_class() for problem in problems]
        pairs = [(first, other) for first, others in rounds for other in others]
        replies = iter(compare_many(pairs))
        for problem, (_, others) in zip(problems, rounds):
            problem.join([other for other in others if next(replies).verdict == "right"])
    return [problem.classes() for problem in problems]


class _Problem:
    """The answers of one problem while they are sorted into classes."""

    def __init__(self, row: Sequence[str | None]) -> None:
        self.row = row
        self.open = list(dict.fromkeys(answer for answer in row if answer is not None))
        self.found: dict[str, int] = {}
        self.count = 0

    def next_class(self) -> tuple[str, list[str]]:
        """Open a class with the first answer that has none; return it and the answers still without."""
        if not self.open:
            return "", []
        first = self.open.pop(0)
        self.found[first] = self.count
        self.count += 1
        return first, list(self.open)

    def join(self, equal: list[str]) -> None:
        """Put answers into the class opened last."""
        for answer in equal:
            self.found[answer] = self.count - 1
            self.open.remove(answer)

    def classes(self) -> Classes:
        """Class of every sample; answers never compared are classes by their text."""
        for answer in self.open:
            self.found[answer] = self.count
            self.count += 1
        return [None if answer is None else self.found[answer] for answer in self.row]


def ungradable(golds: Sequence[str], kind: str) -> list[bool]:
    """Whether each gold answer cannot be read; a property of the gold, whatever a completion says."""
    if kind not in KINDS:
        raise ConfigurationError(f"unknown kind '{kind}'; choose one of {', '.join(KINDS)}")
    if kind == "choice":
        return [found.outcome == "ungradable" for found in grade_many([("A", gold) for gold in golds], kind)]
    # Anything but the gold's own text, which would be equal without being read.
    return [reply.verdict == "ungradable" for reply in compare_many([(gold, "0") for gold in golds])]


class Summary(NamedTuple):
    """Scores and rates of one benchmark.

    Attributes:
        problems: problems that count; ungradable: problems left out because their gold cannot be read.
        samples: completions a problem.
        avg_at_k, maj_at_k: scores with intervals; pass_at_k: by k = 1, 2, 4, ... and the number of samples.
        format_rate: share of completions that give an answer in the form that was asked for.
        truncation_rate: share that the length limit cut.
        timed_out: comparisons that ran past their limit. mean_length: tokens of a completion.
    """

    problems: int
    ungradable: int
    samples: int
    avg_at_k: Score
    pass_at_k: dict[int, Score]
    maj_at_k: Score
    format_rate: float
    truncation_rate: float
    timed_out: int
    mean_length: float


def summarise(
    grades: Sequence[Sequence[Grade]],
    left_out: Sequence[bool],
    kind: str,
    truncated: Sequence[Sequence[bool]],
    lengths: Sequence[Sequence[int]],
) -> Summary:
    """Summary of the completions of one benchmark, each argument (problems, samples) but the kind and
    `left_out`.

    Raises:
        DataError: every problem is left out.
    """
    majority = majority_score(grades, left_out, kind)
    kept = [[found.outcome == "right" for found in row] for row, skip in zip(grades, left_out) if not skip]
    samples = len(kept[0])
    ks = sorted({samples, *(2**power for power in range(samples.bit_length()))})
    flat = [found for row in grades for found in row]
    return Summary(
        problems=len(kept),
        ungradable=sum(left_out),
        samples=samples,
        avg_at_k=avg_at_k(kept),
        pass_at_k={k: pass_at_k(kept, k) for k in ks if k <= samples},
        maj_at_k=majority,
        format_rate=_share([found.answer is not None and (found.boxed or kind != "math") for found in flat]),
        truncation_rate=_share([flag for row in truncated for flag in row]),
        timed_out=sum(found.note == "timed out" for found in flat),
        mean_length=_share([length for row in lengths for length in row]),
    )


def _right(row: Sequence[Grade]) -> list[bool]:
    return [found.outcome == "right" for found in row]


def _share(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0

"""Worked steps for the tasks of the embedded pair, in several wordings with unequal probabilities.

Every problem has many correct texts, so that a teacher trained on them has entropy: between two models that are certain
of every token, distillation would have nothing to measure.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from vopd.data.reasoning import Problem
from vopd.errors import require

Weighted = Sequence[tuple[str, float]]

OPENINGS: Weighted = (("", 0.55), ("First ", 0.25), ("Count: ", 0.15), ("We get ", 0.05))
EQUALS: Weighted = ((" = ", 0.65), (" is ", 0.20), (" makes ", 0.10), (" gives ", 0.05))
JOINERS: Weighted = ((", ", 0.55), (". Then ", 0.25), (" and ", 0.15), ("; ", 0.05))
CLOSINGS: Weighted = ((". ", 0.55), (". So ", 0.25), (". The answer is ", 0.15), (". Total: ", 0.05))
PRODUCTS: Weighted = (("{count} x {legs}", 0.70), ("{count} times {legs}", 0.20), ("{count} {name} x {legs}", 0.10))


def _draw(rng: random.Random, wordings: Weighted) -> str:
    texts, weights = zip(*wordings, strict=True)
    chosen: str = rng.choices(texts, weights)[0]
    return chosen


def _chain_sum_steps(metadata: Mapping[str, Any], rng: random.Random) -> list[str]:
    terms = metadata["expression"].split()
    total = int(terms[0])
    steps = []
    for operator, term in zip(terms[1::2], terms[2::2], strict=True):
        before, total = total, total + int(term) if operator == "+" else total - int(term)
        steps.append(f"{before} {operator} {term}{_draw(rng, EQUALS)}{total}")
    return steps


def _leg_counting_steps(metadata: Mapping[str, Any], rng: random.Random) -> list[str]:
    legs_of = require("reasoning_gym.arithmetic.leg_counting", "train").ANIMALS
    steps, parts = [], []
    for name, count in metadata["animals"].items():
        parts.append(count * legs_of[name])
        product = _draw(rng, PRODUCTS).format(count=count, legs=legs_of[name], name=name + "s" * (count > 1))
        steps.append(f"{product}{_draw(rng, EQUALS)}{parts[-1]}")
    for total, part in zip(accumulate(parts), parts[1:]):
        steps.append(f"{total} + {part}{_draw(rng, EQUALS)}{total + part}")
    return steps


WORKED_TASKS: Mapping[str, Callable[[Mapping[str, Any], random.Random], list[str]]] = {
    "chain_sum": _chain_sum_steps,
    "leg_counting": _leg_counting_steps,
}


def worked_completion(problem: Problem, rng: random.Random) -> str:
    """Return a correct completion of a problem: worked steps in random wordings, the answer in `<answer>` tags.

    Raises:
        KeyError: there are no worked steps for the problem's task.
    """
    steps = WORKED_TASKS[problem.task](problem.metadata, rng)
    joined = steps[0]
    for step in steps[1:]:
        joined += _draw(rng, JOINERS) + step
    return f"{_draw(rng, OPENINGS)}{joined}{_draw(rng, CLOSINGS)}<answer>{problem.answer}</answer>"

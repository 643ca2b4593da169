"""Worked steps: every wording right, many wordings a problem."""

from __future__ import annotations

import random

import pytest

from tools.embedded_pair.worked_steps import worked_completion
from vopd.data.reasoning import Problem, is_right, reasoning_problems
from vopd.experiments.pair import pair_problems


def test_every_wording_is_graded_right() -> None:
    rng = random.Random(0)
    for problem in pair_problems("train", 120, seed=0):
        for _ in range(5):
            text = worked_completion(problem, rng)
            assert is_right(problem, text), (problem, text)


def test_chain_sum_steps_are_running_totals() -> None:
    problem = Problem("chain_sum", "", "-4", {"expression": "3 - 9 + 2"})
    texts = {worked_completion(problem, random.Random(seed)) for seed in range(200)}
    assert "3 - 9 = -6, -6 + 2 = -4. <answer>-4</answer>" in texts
    assert len(texts) > 50


def test_leg_counting_steps_use_the_library_table() -> None:
    problem = Problem("leg_counting", "", "16", {"animals": {"ant": 2, "dog": 1}})
    texts = {worked_completion(problem, random.Random(seed)) for seed in range(400)}
    assert "2 x 6 = 12, 1 x 4 = 4, 12 + 4 = 16. <answer>16</answer>" in texts
    assert any("2 ants x 6" in text for text in texts)
    assert any("1 dog x 4" in text for text in texts)


def test_wordings_are_skewed() -> None:
    """The commonest opening is drawn for about half of the texts: real entropy, and far from uniform."""
    problem = reasoning_problems("chain_sum", 1, seed=0)[0]
    rng = random.Random(0)
    texts = [worked_completion(problem, rng) for _ in range(400)]
    plain = sum(text[0].isdigit() for text in texts) / len(texts)
    assert 0.45 < plain < 0.65


def test_other_tasks_are_refused() -> None:
    with pytest.raises(KeyError, match="gcd"):
        worked_completion(Problem("gcd", "", "1"), random.Random(0))

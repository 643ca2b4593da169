"""Group advantages against their definition, and their expectation by enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from vopd.functional import groups_without_spread, leave_one_out_advantages

ONE = torch.ones(1)


def test_each_completion_is_compared_with_the_others_of_its_prompt() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 5.0, 5.0, 8.0]).unsqueeze(-1)
    assert leave_one_out_advantages(rewards, ONE, 3).tolist() == [1.0, -0.5, -0.5, -1.5, -1.5, 3.0]


def test_functions_are_weighed_and_a_missing_reward_counts_for_nobody() -> None:
    nan = math.nan
    rewards = torch.tensor([[1.0, 2.0], [0.0, nan], [nan, 6.0], [nan, nan]])
    found = leave_one_out_advantages(rewards, torch.tensor([1.0, 0.5]), 4)
    assert found.tolist() == [1.0 - 0.5 * 4, -1.0, 0.5 * 4, 0.0]
    alone = torch.tensor([[3.0], [nan], [nan], [nan]])
    assert leave_one_out_advantages(alone, ONE, 4).tolist() == [0.0] * 4


@pytest.mark.parametrize("value", [0.1, 1e8, -1 / 3])
def test_equal_rewards_teach_nothing_exactly(value: float) -> None:
    rewards = torch.full((6, 1), value)
    assert leave_one_out_advantages(rewards, ONE, 3).tolist() == [0.0] * 6
    assert groups_without_spread(rewards, 3).tolist() == [True, True]


def test_groups_without_spread() -> None:
    nan = math.nan
    rewards = torch.tensor([[1.0, nan], [1.0, 2.0], [0.0, 1.0], [0.0, 2.0], [nan, nan], [nan, nan]])
    assert groups_without_spread(rewards, 2).tolist() == [True, False, True]


def test_expected_gradient_is_that_of_the_reward_and_counting_oneself_shrinks_it() -> None:
    """Over all pairs of completions of one token: E[sum a_i grad log p(y_i)] / 2 = grad E[R]."""
    logits = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([1.0, 0.0, 0.25], dtype=torch.float64)
    target = torch.autograd.grad((logits.softmax(-1) * reward).sum(), logits)[0]
    probs = logits.detach().softmax(-1)
    score = torch.eye(3).double() - probs  # grad log p(y)
    found, biased = torch.zeros(3).double(), torch.zeros(3).double()
    for pair in itertools.product(range(3), repeat=2):
        chosen = torch.tensor(pair)
        drawn = reward[chosen]
        weight = probs[chosen].prod() / 2
        found += weight * (leave_one_out_advantages(drawn.unsqueeze(-1), ONE, 2).double() @ score[chosen])
        biased += weight * ((drawn - drawn.mean()) @ score[chosen])
    torch.testing.assert_close(found, target, atol=1e-7, rtol=0)
    torch.testing.assert_close(biased, target / 2, atol=1e-7, rtol=0)

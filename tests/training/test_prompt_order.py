from __future__ import annotations

import pytest

from vopd.training.prompt_order import EpochSampler


def sampler(**settings: int) -> EpochSampler:
    values = {"num_prompts": 11, "batch_size": 4, "repeats": 2, "seed": 3} | settings
    return EpochSampler(
        values["num_prompts"], values["batch_size"], values["repeats"], shuffle=True, seed=values["seed"]
    )


def test_each_batch_is_read_once_for_every_micro_batch() -> None:
    order = list(sampler())
    assert len(order) == len(sampler()) == 2 * 4 * 2
    assert order[:4] == order[4:8] and order[8:12] == order[12:]
    assert len(set(order)) == 8


def test_order_is_a_function_of_seed_and_epoch() -> None:
    ours, other = sampler(), sampler()
    list(other), list(other)  # however often it was read before
    for epoch in (0, 1, 5, 1):
        ours.set_epoch(epoch)
        other.set_epoch(epoch)
        assert list(ours) == list(other)
    orders = []
    for epoch in range(4):
        ours.set_epoch(epoch)
        orders.append(tuple(ours))
    assert len(set(orders)) == 4
    assert list(sampler(seed=4)) != list(sampler(seed=3))


def test_without_shuffling_every_epoch_is_the_data_set() -> None:
    plain = EpochSampler(5, 2, 1, shuffle=False, seed=0)
    plain.set_epoch(3)
    assert list(plain) == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [0, 3])
def test_fewer_prompts_than_a_batch_yield_nothing(count: int) -> None:
    few = sampler(num_prompts=count)
    assert list(few) == [] and len(few) == 0

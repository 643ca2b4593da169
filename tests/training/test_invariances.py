"""What must not change a step's loss and gradient: padding, the order of its sequences, how it is cut up.

Accumulation is in test_loss.py, processes and sharding are in test_distributed.py, chunks in
kernels/test_linear.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

Make = Callable[..., Any]
Inputs = dict[str, torch.Tensor]

TOLERANCE = 1e-5


@pytest.fixture(params=["full", "lora"])
def trainer(request: pytest.FixtureRequest, make_trainer: Make) -> Any:
    from peft import LoraConfig

    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    made = make_trainer(trainer={"peft_config": lora if request.param == "lora" else None}, estimator="vopd_optimal")
    made.model.train()
    return made


def batch() -> Inputs:
    """Four sequences of different lengths: prompts padded on the left, completions on the right, as TRL pads them."""
    prompts = [[3], [4, 5, 6], [7, 8], [9, 10, 11]]
    completions = [[12, 13, 1], [14], [15, 16, 17, 18, 1], [19, 20, 1]]
    return {
        "prompt_ids": torch.tensor([[0] * (3 - len(ids)) + ids for ids in prompts]),
        "prompt_mask": torch.tensor([[0] * (3 - len(ids)) + [1] * len(ids) for ids in prompts]),
        "completion_ids": torch.tensor([ids + [0] * (5 - len(ids)) for ids in completions]),
        "completion_mask": torch.tensor([[1] * len(ids) + [0] * (5 - len(ids)) for ids in completions]),
        "num_items_in_batch": torch.tensor(12.0),
    }


def rows(inputs: Inputs, chosen: list[int]) -> Inputs:
    return {name: value[chosen] if value.ndim else value for name, value in inputs.items()}


def padded(inputs: Inputs, left: int, right: int, filler: int) -> Inputs:
    """More padding, of another id, where the mask says that it is padding."""
    pad = torch.nn.functional.pad
    out = dict(inputs)
    for name, amount in (("prompt", (left, 0)), ("completion", (0, right))):
        out[f"{name}_ids"] = pad(inputs[f"{name}_ids"], amount, value=0)
        out[f"{name}_mask"] = pad(inputs[f"{name}_mask"], amount, value=0)
        out[f"{name}_ids"] = out[f"{name}_ids"].masked_fill(out[f"{name}_mask"] == 0, filler)
    return out


def step(trainer: Any, parts: list[Inputs]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient of a step made of these micro-batches."""
    trainer.model.zero_grad()
    total = 0.0
    for inputs in parts:
        loss = trainer.compute_loss(trainer.model, dict(inputs))
        loss.backward()
        total += loss.item()
    return total, {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


def check(trainer: Any, parts: list[Inputs]) -> None:
    loss, gradient = step(trainer, [batch()])
    other_loss, other = step(trainer, parts)
    largest = max(value.abs().max() for value in gradient.values())
    assert largest > 1e-3 and gradient.keys() == other.keys()
    assert other_loss == pytest.approx(loss, abs=TOLERANCE)
    for name, value in gradient.items():
        assert (value - other[name]).abs().max() <= TOLERANCE * max(1.0, largest), name


@pytest.mark.parametrize(("left", "right"), [(1, 0), (0, 1), (7, 5)])
@pytest.mark.parametrize("filler", [0, 1, 42], ids=["pad", "eos", "text"])
def test_amount_and_content_of_padding(trainer: Any, left: int, right: int, filler: int) -> None:
    check(trainer, [padded(batch(), left, right, filler)])


def test_order_of_sequences(trainer: Any) -> None:
    check(trainer, [rows(batch(), [2, 0, 3, 1])])


@pytest.mark.parametrize("parts", [[[0], [1], [2], [3]], [[0, 1], [2, 3]], [[3, 0, 2], [1]]])
def test_cut_into_micro_batches(trainer: Any, parts: list[list[int]]) -> None:
    check(trainer, [rows(batch(), part) for part in parts])


def test_a_sequence_alone_without_any_padding(trainer: Any) -> None:
    """The sum over sequences, each scored by itself: padding adds nothing, and no sequence sees another."""
    alone = []
    for row in range(4):
        one = rows(batch(), [row])
        prompt, completion = one["prompt_mask"][0].bool(), one["completion_mask"][0].bool()
        for name, kept in (("prompt", prompt), ("completion", completion)):
            one[f"{name}_ids"], one[f"{name}_mask"] = one[f"{name}_ids"][:, kept], one[f"{name}_mask"][:, kept]
        alone.append(one)
    check(trainer, alone)


@pytest.mark.parametrize("estimator", ["vopd", "vopd_optimal", "rao_blackwell_top_k", "full_rkl"])
def test_side_of_padding(estimator: str) -> None:
    """The loss itself takes padding anywhere: on the right, on the left, between the tokens."""
    import vopd

    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 12), torch.randn(2, 4, 12)
    ids = torch.randint(12, (2, 4))
    top_k = 3 if vopd.ESTIMATORS[estimator].needs_top_k else None
    found = []
    for places in ([0, 1, 2, 3], [3, 4, 5, 6], [0, 2, 4, 6]):
        wide = [torch.full((2, 7, 12), 50.0) for _ in range(2)]
        wide[0][:, places], wide[1][:, places] = student, teacher
        wide_ids, mask = torch.full((2, 7), 11), torch.zeros(2, 7, dtype=torch.long)
        wide_ids[:, places], mask[:, places] = ids, 1
        leaf = wide[0].requires_grad_()
        loss = vopd.distillation_loss(leaf, wide[1], wide_ids, mask, estimator=estimator, top_k=top_k).loss
        loss.backward()
        assert leaf.grad is not None
        rest = [place for place in range(7) if place not in places]
        assert not leaf.grad[:, rest].any()
        found.append((loss.item(), leaf.grad[:, places]))
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-6)
        torch.testing.assert_close(gradient, found[0][1])

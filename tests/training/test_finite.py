"""A step that is not finite is not taken, and what caused it is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from messages import says
from vopd.errors import NonFiniteError
from vopd.placement import Placement
from vopd.training.batch import Batch
from vopd.training.monitoring.finite import FiniteGuard


def poison_loss(trainer: Any) -> None:
    """The second micro-batch of the second step gets a NaN loss, the gradient of the others is fine."""
    original, calls = trainer.token_loss, []

    def token_loss(batch: Any, student: Any, *rest: Any) -> Any:
        loss = original(batch, student, *rest)
        calls.append(batch)
        return loss * float("nan") if len(calls) == 4 else loss

    trainer.token_loss = token_loss


def poison_gradient(trainer: Any) -> None:
    """A finite loss whose gradient is infinite."""
    original, calls = trainer.token_loss, []

    def token_loss(batch: Any, student: Any, *rest: Any) -> Any:
        loss = original(batch, student, *rest)
        calls.append(batch)
        if len(calls) == 3:
            zero = student.hidden.sum() * 0
            loss = loss + torch.sqrt(zero) * 1e-3
        return loss

    trainer.token_loss = token_loss


@pytest.mark.parametrize(
    ("poison", "what", "rows", "clip"),
    [(poison_loss, "loss", 2, 1.0), (poison_gradient, "gradient", 4, 1.0), (poison_gradient, "gradient", 4, 0.0)],
)
def test_the_run_ends_before_the_step_is_taken(
    poison: Callable[[Any], None], what: str, rows: int, clip: float, make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    from transformers import TrainerCallback

    class Keep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
            kept.update({name: value.clone() for name, value in model.state_dict().items()})

    kept: dict[str, torch.Tensor] = {}
    trainer = make_trainer(
        gradient_accumulation_steps=2, max_steps=3, max_grad_norm=clip, trainer={"callbacks": [Keep()]}
    )
    poison(trainer)
    with pytest.raises(NonFiniteError, match=says(f"{what} of step 2 ... not finite")) as raised:
        trainer.train()
    assert raised.value.exit_code == 6
    assert all(torch.equal(value, kept[name]) for name, value in trainer.model.state_dict().items())
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    saved = load_file(tmp_path / "run" / "nonfinite_batch.safetensors")
    batches = trainer.micro_batches[-rows // 2 :]
    assert torch.equal(saved["completion_ids"], torch.cat([batch.completion_ids for batch in batches]))
    facts = json.loads((tmp_path / "run" / "nonfinite_batch.json").read_text())
    assert facts["step"] == 2 and facts["not_finite"] == what and len(facts["texts"]) == rows
    assert facts["texts"][0]["prompt"].startswith("What is")


def test_a_gradient_for_which_an_engine_skipped_the_step_ends_the_run(
    make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed looks at the gradient before the step, passes over the step, and would go on."""
    monkeypatch.setattr(Placement, "in_an_engine", True)
    trainer = make_trainer(gradient_accumulation_steps=2, max_steps=3)
    poison_gradient(trainer)
    with pytest.raises(NonFiniteError, match=says("gradient of step 2 ... not finite")):
        trainer.train()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_teacher_that_is_not_finite_ends_the_run(value: float, make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer()
    with torch.no_grad():
        trainer.teacher_model.get_output_embeddings().weight[7] = value
    with pytest.raises(NonFiniteError, match="step 1 is not finite"):
        trainer.train()


class Ranks:
    """Stands for accelerate on one of two ranks: the other one reports `other`."""

    process_index, mixed_precision, device = 1, "bf16", torch.device("cpu")

    def __init__(self, other: list[float]) -> None:
        self.other = torch.tensor(other)

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        return tensor + self.other


def batch() -> Batch:
    ids = torch.tensor([[3, 4]])
    return Batch(ids, ids > 0, ids, ids > 0)


TOKENIZER = SimpleNamespace(decode=lambda ids: "text")


def test_every_rank_stops_if_one_is_not_finite(tmp_path: Path) -> None:
    guard = FiniteGuard(Ranks([1.0, 0.0]), TOKENIZER, str(tmp_path))
    guard.watch(torch.tensor(1.0))
    with pytest.raises(NonFiniteError, match=says("another rank")):
        guard.check(torch.tensor(1.0), [batch()], 5)
    assert not list(tmp_path.iterdir())
    guard.watch(torch.tensor(float("nan")))
    with pytest.raises(NonFiniteError, match="rank1"):
        guard.check(torch.tensor(1.0), [batch()], 5)
    assert (tmp_path / "nonfinite_batch.rank1.safetensors").exists()


def test_a_full_disk_does_not_hide_the_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    guard = FiniteGuard(Ranks([0.0, 0.0]), TOKENIZER, str(tmp_path / "file" / "run"))
    guard.watch(torch.tensor(float("inf")))
    with pytest.raises(NonFiniteError, match="could not be saved"):
        guard.check(torch.tensor(1.0), [batch()], 1)


def test_finite_steps_pass_and_overflows_of_loss_scaling_are_left_to_the_scaler(tmp_path: Path) -> None:
    guard = FiniteGuard(Ranks([0.0, 0.0]), TOKENIZER, str(tmp_path))
    for _ in range(2):
        guard.watch(torch.tensor(1.0))
        guard.check(2.0, [batch()], 1)
    guard.accelerator.mixed_precision = "fp16"
    guard.watch(torch.tensor(1.0))
    guard.check(torch.tensor(float("inf")), [batch()], 1)

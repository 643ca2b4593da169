"""The embedded pair, a stub server of its teacher, and trainers that use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from teachers.stub_server import StubServer

PROMPTS = [
    f"State the final answer to the following arithmetic problem: {a} + {b} =" for a in (3, 5) for b in (2, 4, 6)
]


@pytest.fixture(scope="session")
def pair() -> Any:
    from vopd.experiments.pair import load_embedded_pair

    return load_embedded_pair()


@pytest.fixture
def serve(pair: Any) -> Iterator[Callable[..., StubServer]]:
    """serve(**options): a stub server of the embedded teacher, closed after the test; of another class with `kind`."""
    servers: list[StubServer] = []

    def start(model: Any = None, kind: type[StubServer] = StubServer, **options: Any) -> StubServer:
        servers.append(kind(pair.teacher if model is None else model, pair.tokenizer, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def pool(serve: Callable[..., StubServer]) -> Callable[..., StubServer]:
    """pool(**options): a stub server of the embedded teacher's hidden states."""
    return partial(serve, pools="token_embed")


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Any]:
    """make_trainer(teacher_model=..., trainer={...}, **config): a trainer of the embedded student."""
    from datasets import Dataset

    from vopd.experiments.pair import embedded_pair
    from vopd.training import VOPDConfig, VOPDTrainer

    def make(teacher_model: Any = None, trainer: dict[str, Any] | None = None, **config: Any) -> Any:
        small = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 3,
            "max_completion_length": 12,
            "max_steps": 1,
            "learning_rate": 1e-3,
            "save_strategy": "no",
            "use_cpu": True,
            "estimator": "vopd_teacher_top_k",
            "loss_top_k": 5,
            "teacher_server_timeout": 20.0,
        }
        settings = {name: value for name, value in (small | config).items() if value is not ...}
        return VOPDTrainer(
            model=str(embedded_pair().student),
            teacher_model=teacher_model,
            args=VOPDConfig(**settings),
            **({"train_dataset": Dataset.from_dict({"prompt": PROMPTS})} | (trainer or {})),
        )

    return make


class Gradients:
    """Callback: the gradient of every optimizer step, and the weights at the end."""

    def __new__(cls) -> Any:
        from transformers import TrainerCallback

        class Keep(TrainerCallback):
            def __init__(self) -> None:
                self.steps: list[dict[str, torch.Tensor]] = []

            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
                self.steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

        return Keep()


@pytest.fixture
def gradients_of() -> Callable[[Any], list[dict[str, torch.Tensor]]]:
    """gradients_of(trainer): trains, and returns the gradient of every step by parameter name."""

    def train(trainer: Any) -> list[dict[str, torch.Tensor]]:
        keep = Gradients()
        trainer.add_callback(keep)
        trainer.train()
        return keep.steps

    return train


@pytest.fixture
def gradients_without(gradients_of: Callable[..., Any]) -> Callable[..., dict[str, torch.Tensor]]:
    """gradients_without(trainer, left_out): the gradient of its first step, where completions for whose ids, added up,
    `left_out` holds count neither in the loss nor in the normalizer."""
    from vopd.training.batch import Batch

    def train(trainer: Any, left_out: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
        completions_of = trainer.completions_of

        def masked(rows: list[dict[str, Any]]) -> Batch:
            batch = completions_of(rows)
            ids, mask, *_ = batch.sequence
            kept = (~left_out((ids * mask).sum(1))).long()
            batch = replace(batch, tool_mask=kept.unsqueeze(1).expand_as(batch.completion_mask))
            return replace(batch, num_items_in_batch=batch.loss_mask.sum())

        trainer.completions_of = masked
        return gradients_of(trainer)[0]

    return train

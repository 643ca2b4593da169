"""The embedded student, trained under any teacher by the programs beside this file, and how far two runs are apart."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

VOCABULARY = 500
PROMPTS = [
    f"State the final answer to the following arithmetic problem: {a} + {b} =" for a in range(2, 6) for b in (2, 7)
]


@dataclass
class Run:
    """What came of a training.

    Attributes:
        gradients: of every optimizer step, by parameter name.
        before, after: the weights, by parameter name.
        notes: what was said about the teacher's servers.
    """

    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    before: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def train(estimator: str, top_k: int | None, teacher: Any = None, **settings: Any) -> Run:
    """Two optimizer steps of two micro-batches each; `settings` are those of VOPDConfig."""
    from datasets import Dataset
    from transformers import TrainerCallback

    from vopd.experiments.pair import embedded_pair
    from vopd.training import VOPDConfig, VOPDTrainer

    run = Run()

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
            found = {key: part.grad.clone() for key, part in model.named_parameters() if part.grad is not None}
            run.gradients.append(found)

    with tempfile.TemporaryDirectory() as folder, Notes() as run.notes:
        trainer = VOPDTrainer(
            model=str(embedded_pair().student),
            teacher_model=None if teacher is None else str(teacher),
            args=VOPDConfig(
                output_dir=folder,
                estimator=estimator,
                loss_top_k=top_k,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=2,
                max_completion_length=24,
                max_steps=2,
                max_grad_norm=0,
                save_strategy="no",
                use_cpu=True,
                **settings,
            ),
            train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
            callbacks=[Keep()],
        )
        run.before = weights(trainer.model)
        trainer.train()
        run.after = weights(trainer.model)
    return run


def weights(model: Any) -> dict[str, Tensor]:
    """A copy of the model's parameters, by name."""
    return {name: part.detach().clone() for name, part in model.named_parameters()}


def largest(one: Run, other: Run) -> float:
    """Largest difference of the gradients of all steps, relative to the largest gradient of `one`."""
    scale = max(value.abs().max() for step in one.gradients for value in step.values())
    pairs = zip(one.gradients, other.gradients, strict=True)
    return float(max((here[key] - there[key]).abs().max() for here, there in pairs for key in here) / scale)


def frobenius(one: Run, other: Run) -> float:
    """Largest difference of a parameter's gradient, as a ratio of Frobenius norms, over steps and parameters."""
    pairs = zip(one.gradients, other.gradients, strict=True)
    return max(float((here[key] - there[key]).norm() / here[key].norm()) for here, there in pairs for key in here)


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, Tensor]:
    """The differences of weights, by name."""
    return {name: after[name] - part for name, part in before.items()}


def norm(parts: dict[str, Tensor]) -> float:
    """Of all parts together, Frobenius."""
    return float(sum(part.double().square().sum() for part in parts.values())) ** 0.5


def traffic(model: Any, what: str, question: Any) -> None:
    """Print the bytes that cross the network for a token of a question, prompt or completion."""
    counts, ask = model.servers.counts, model.score if hasattr(question, "top_k") else model.states
    before = dict(counts)
    ask(question)
    sent, received = ((counts[name] - before[name]) / len(question.ids) for name in ("bytes_sent", "bytes_received"))
    print(f"{what:<28} {sent:.0f} bytes per token sent, {received:.0f} received")


def text_ids() -> tuple[int, ...]:
    """200 tokens, whose traffic is measured."""
    from vopd.experiments.pair import load_embedded_pair

    return tuple(load_embedded_pair().tokenizer(" ".join(PROMPTS))["input_ids"][:200])


class Notes(logging.Handler):
    """Collects what is logged about teacher servers, as a context."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith("teacher server: "):
            self.found.append(text.removeprefix("teacher server: "))

    def __enter__(self) -> list[str]:
        logger = logging.getLogger("vopd")
        self.level_before = logger.level
        logger.setLevel(logging.INFO)
        logger.addHandler(self)
        return self.found

    def __exit__(self, *error: object) -> None:
        logger = logging.getLogger("vopd")
        logger.removeHandler(self)
        logger.setLevel(self.level_before)

"""The gradient of a training step: against an independent computation, and whatever the accumulation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from step_reference import written_out
from vopd import ESTIMATORS, distillation_loss
from vopd.models import States


def top_k_of(estimator: str) -> int | None:
    return 4 if ESTIMATORS[estimator].needs_top_k else None


@pytest.mark.parametrize("estimator", ["vopd", "full_rkl"])
def test_gradient_of_a_step_is_that_of_the_formula_written_out(
    estimator: str,
    make_trainer: Callable[..., Any],
    take_step: Callable[..., Any],
    recorded_completions: Any,
    tiny_student_dir: Path,
    tiny_teacher_dir: Path,
) -> None:
    from transformers import AutoModelForCausalLM

    prompts = ["Hi", "How many legs do two dogs have?", "4 + 5 =", "So the answer is"]
    trainer = make_trainer(
        prompts=prompts,
        estimator=estimator,
        temperature=0.7,
        gradient_accumulation_steps=2,
        max_steps=1,
        max_grad_norm=0,
    )
    gradient = take_step(trainer, recorded_completions)

    student, teacher = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (tiny_student_dir, tiny_teacher_dir)
    )
    pairs = [(ids, recorded_completions(ids)) for ids in trainer.tokenize(prompts)]
    assert {len(completion) for _, completion in pairs} != {len(pairs[0][1])}
    loss = written_out(student, teacher, pairs, estimator, 0.7)
    loss.backward()
    expected = {name: parameter.grad for name, parameter in student.named_parameters()}
    assert gradient.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(gradient[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), abs=1e-5)


# One for each kind of support and of scores.
@pytest.mark.parametrize("estimator", ["opd", "vopd", "vopd_sparse", "vopd_teacher_top_k", "full_rkl"])
def test_accumulation_does_not_change_the_gradient(
    estimator: str, make_trainer: Callable[..., Any], take_step: Callable[..., Any], recorded_completions: Any
) -> None:
    gradients = []
    for accumulation in (1, 2, 8):
        trainer = make_trainer(
            prompts=[f"{'so ' * a}{a} + {a}" for a in range(8)],
            estimator=estimator,
            loss_top_k=top_k_of(estimator),
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            max_grad_norm=0,
        )
        gradients.append(take_step(trainer, recorded_completions))
    largest = max(value.abs().max() for value in gradients[0].values())
    assert largest > 1e-3
    for other in gradients[1:]:
        for name, value in gradients[0].items():
            assert (value - other[name]).abs().max() <= 1e-5 * largest, name


def test_normalizer_is_a_constant_where_one_is_given(
    make_trainer: Callable[..., Any], take_step: Callable[..., Any], recorded_completions: Any
) -> None:
    def gradient(**config: Any) -> dict[str, torch.Tensor]:
        trainer = make_trainer(gradient_accumulation_steps=2, max_steps=1, max_grad_norm=0, **config)
        tokens.append(sum(len(recorded_completions(ids)) for ids in first_prompts(trainer)))
        return take_step(trainer, recorded_completions)

    def first_prompts(trainer: Any) -> list[list[int]]:
        order = list(trainer._get_train_sampler())[:4]
        return trainer.tokenize(trainer.train_dataset[order]["prompt"])

    tokens: list[int] = []
    by_length, by_constant = gradient(), gradient(loss_normalizer=40.0)
    for name, value in by_length.items():
        torch.testing.assert_close(by_constant[name], value * tokens[0] / 40.0, rtol=1e-4, atol=1e-6)


def test_tokens_that_a_tool_returned_do_not_count(make_trainer: Callable[..., Any]) -> None:
    """Nor does padding: the masked step must equal one whose loss sees only the student's own tokens."""
    trainer = make_trainer(max_steps=1)
    trainer.model.train()
    ids = torch.tensor([[5, 6, 7, 8, 1], [9, 10, 1, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    own = torch.tensor([[1, 0, 0, 1, 1], [1, 1, 1, 1, 1]])
    inputs = {
        "prompt_ids": torch.tensor([[0, 3], [4, 3]]),
        "prompt_mask": torch.tensor([[0, 1], [1, 1]]),
        "completion_ids": ids,
        "completion_mask": mask,
        "num_items_in_batch": torch.tensor(6.0),
    }
    unmasked = trainer.compute_loss(trainer.model, dict(inputs))
    trainer.step_metrics("train")
    loss = trainer.compute_loss(trainer.model, {**inputs, "tool_mask": own})
    assert loss.item() != pytest.approx(unmasked.item(), rel=1e-3)
    tool = {name: value[:1] if value.ndim else value for name, value in inputs.items()}
    other = {name: value[1:] if value.ndim else value for name, value in inputs.items()}
    kept = trainer.compute_loss(trainer.model, {**tool, "tool_mask": own[:1]}) + trainer.compute_loss(
        trainer.model, other
    )
    torch.testing.assert_close(loss, kept)
    output = []
    trainer._samples.offer = lambda inputs, out: output.append(out)
    trainer.compute_loss(trainer.model, {**inputs, "tool_mask": own})
    assert (output[0].rewards != 0).long().tolist() == (mask * own).tolist()


def test_a_fully_masked_micro_batch_has_zero_loss_and_gradient(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(max_steps=1)
    trainer.model.train()
    inputs = {
        "prompt_ids": torch.tensor([[4, 3]]),
        "prompt_mask": torch.ones(1, 2, dtype=torch.long),
        "completion_ids": torch.tensor([[5, 1]]),
        "completion_mask": torch.zeros(1, 2, dtype=torch.long),
        "num_items_in_batch": torch.tensor(3.0),
    }
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    assert loss.item() == 0
    assert all((p.grad == 0).all() for p in trainer.model.parameters() if p.grad is not None)
    assert "reverse_kl" not in trainer.step_metrics("train")


def test_mixed_precision_reaches_rollout_and_loss_alike(
    make_trainer: Callable[..., Any], fresh_accelerate: None
) -> None:
    trainer = make_trainer(bf16=True, max_steps=1)
    seen: dict[str, set[torch.dtype]] = {"rollout": set(), "loss": set()}
    part = ["rollout"]
    trainer.model.model.layers[0].mlp.down_proj.register_forward_hook(
        lambda module, inputs, output: seen[part[0]].add(output.dtype)
    )
    original, states = trainer.token_loss, []
    trainer.token_loss = lambda batch, student, *rest: (states.append(student), original(batch, student, *rest))[1]
    rollout_done = trainer.rollout_done
    trainer.rollout_done = lambda *done: (part.__setitem__(0, "loss"), rollout_done(*done))[1]
    trainer.train()
    assert seen == {"rollout": {torch.bfloat16}, "loss": {torch.bfloat16}}
    assert states[0].hidden.dtype == torch.bfloat16
    assert states[0].head.weight is trainer.model.lm_head.weight  # the master itself, which the loss rounds
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    assert not torch.is_autocast_enabled("cpu")


def at_the_loss(trainer: Any) -> list[tuple[torch.Tensor, ...]]:
    """Takes a step; value and head gradient of each micro-batch's loss: as it is, of a head in bf16, and exact."""
    token_loss, found = trainer.token_loss, []

    def check(batch: Any, student: Any, scored: Any, normalizer: Any) -> torch.Tensor:
        hidden, kept, results = student.hidden.detach(), student.head.detach(), []
        for head in (kept, kept.map(torch.Tensor.bfloat16)):
            head.weight.requires_grad_()
            loss = token_loss(batch, States(hidden, head), scored, normalizer)
            results += [loss.detach(), *torch.autograd.grad(loss, head.weight)]
        with torch.autocast("cpu", enabled=False):
            results += exact(batch, student, scored[0].by, normalizer)
        found.append(tuple(results))
        return token_loss(batch, student, scored, normalizer)

    trainer.token_loss = check
    trainer.train()
    return found


def exact(batch: Any, student: States, teacher: States, normalizer: Any) -> list[torch.Tensor]:
    """Value and head gradient in float64 from rounded states and heads."""
    weight = student.head.weight.detach().bfloat16().double().requires_grad_()
    loss = distillation_loss(
        student.hidden.detach().double() @ weight.T,
        teacher.hidden.double() @ teacher.head.weight.bfloat16().double().T,
        batch.completion_ids,
        batch.loss_mask,
        vocab_size=300,
        normalizer=normalizer,
    ).loss
    return [loss.detach(), *torch.autograd.grad(loss, weight)]


def test_a_float32_head_is_rounded_for_the_products_alone(
    make_trainer: Callable[..., Any], fresh_accelerate: None
) -> None:
    """The value is that of the logits that were sampled from, as of a head in bf16; the gradient keeps its bits."""
    trainer = make_trainer(bf16=True, max_steps=1, gradient_accumulation_steps=2)
    found = at_the_loss(trainer)
    assert len(found) == 2
    for loss, gradient, rounded_loss, rounded_gradient, exact_loss, expected in found:
        assert torch.equal(loss, rounded_loss) and loss.item() == pytest.approx(exact_loss.item(), rel=3e-6)
        assert gradient.dtype == torch.float32 and (gradient.bfloat16().float() != gradient).any()
        error, narrowed = ((g.double() - expected).norm() / expected.norm() for g in (gradient, rounded_gradient))
        assert error < 2e-6 < 1e-4 < narrowed

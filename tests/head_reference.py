"""Hidden states and heads with every option, and their dense logits by autograd: what the fused pass must give."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import vopd

OPTIONS = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "bias": {"student_bias": True, "teacher_bias": True},
    "scale": {"student_logit_scale": 0.25, "teacher_logit_scale": 1.5},
    "softcap": {"student_softcap": 3.0, "teacher_softcap": 5.0},
    "everything": {
        "student_bias": True,
        "teacher_bias": True,
        "student_logit_scale": 0.5,
        "teacher_logit_scale": 1.5,
        "student_softcap": 4.0,
        "teacher_softcap": 3.0,
        "temperature": 1.3,
    },
}
VOCAB = 50


def batch_of(
    options: dict[str, Any],
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    vocab: int = VOCAB,
    extra: tuple[int, int] = (6, 2),
    shape: tuple[int, ...] = (3, 5),
    widths: tuple[int, int] = (8, 12),
    seed: int = 0,
) -> dict[str, Any]:
    """Arguments of ``linear_distillation_loss``: ``extra`` rows beyond ``vocab`` in the heads; biases where asked."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(device, dtype)

    batch = {
        "student_hidden": normal(*shape, widths[0]).requires_grad_(),
        "student_head": normal(vocab + extra[0], widths[0]).requires_grad_(),
        "teacher_hidden": normal(*shape, widths[1]),
        "teacher_head": 0.7 * normal(vocab + extra[1], widths[1]),
        "completion_ids": torch.randint(vocab, shape, generator=generator).to(device),
        "completion_mask": (torch.rand(shape, generator=generator) > 0.3).long().to(device),
        "vocab_size": vocab,
        **options,
    }
    if options.get("student_bias"):
        batch["student_bias"] = normal(vocab + extra[0]).requires_grad_()
    if options.get("teacher_bias"):
        batch["teacher_bias"] = normal(vocab + extra[1])
    return batch


def leaves(batch: dict[str, Any]) -> list[Tensor]:
    """What gets gradient."""
    return [x for x in batch.values() if isinstance(x, Tensor) and x.requires_grad]


def wide(batch: dict[str, Any]) -> dict[str, Any]:
    """The same values in float64 on the CPU, gradient wanted for the same ones."""
    return {
        name: x.detach().cpu().double().requires_grad_(x.requires_grad)
        if isinstance(x, Tensor) and x.is_floating_point()
        else (x.cpu() if isinstance(x, Tensor) else x)
        for name, x in batch.items()
    }


def dense(batch: dict[str, Any], **arguments: Any) -> Any:
    """``distillation_loss`` of the logits written out with all options, (B, T, V), differentiable throughout."""
    logits = []
    for model in ("student", "teacher"):
        raw = batch[f"{model}_hidden"] @ batch[f"{model}_head"].T
        bias, cap = batch.get(f"{model}_bias"), batch.get(f"{model}_softcap")
        raw = (raw if bias is None else raw + bias) * batch.get(f"{model}_logit_scale", 1.0)
        logits.append(raw if cap is None else cap * torch.tanh(raw / cap))
    arguments = {"vocab_size": batch["vocab_size"], "temperature": batch.get("temperature", 1.0), **arguments}
    return vopd.distillation_loss(*logits, batch["completion_ids"], batch["completion_mask"], **arguments)


FIELDS = (
    "advantages",
    "baseline",
    "rewards",
    "reverse_kl",
    "student_logprobs",
    "teacher_logprobs",
    "entropy",
)


def assert_same_outputs(ours: Any, theirs: Any, **tolerance: float) -> None:
    """Everything per token that both have, and the loss; ``ours`` has to have no more than ``theirs``."""
    torch.testing.assert_close(ours.loss.detach().cpu().double(), theirs.loss.detach(), **tolerance)
    for name in FIELDS:
        value = getattr(ours, name)
        if value is not None:
            torch.testing.assert_close(value.cpu().double(), getattr(theirs, name), **tolerance)
    if ours.variance is not None:
        for value, other in zip(ours.variance, theirs.variance):
            torch.testing.assert_close(value.cpu().double(), other, **tolerance)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Frobenius norm of the difference over that of the reference."""
    return float((ours.detach().cpu().double() - theirs).norm() / theirs.norm())

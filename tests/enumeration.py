"""Expectations over the sampled token by going through the whole vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import vopd


def exact_gradient(student: Tensor, teacher: Tensor) -> Tensor:
    """Gradient of KL(p || q) in the student's logits by autograd, (V,)."""
    logits = student.clone().requires_grad_()
    logprobs = logits.log_softmax(-1)
    (logprobs.exp() * (logprobs - teacher.log_softmax(-1))).sum().backward()
    assert logits.grad is not None
    return logits.grad


def outcomes(student: Tensor, teacher: Tensor, estimator: str, **options: Any) -> tuple[Tensor, Any]:
    """The estimator's gradient for every token that could have been sampled, (V, V), and its output."""
    vocab = len(student)
    logits = student.expand(vocab, vocab).clone().requires_grad_()
    teacher_logits = None if "teacher_scores" in options else teacher.expand(vocab, vocab)
    out = vopd.distillation_loss(
        logits, teacher_logits, torch.arange(vocab), estimator=estimator, normalizer=1.0, **options
    )
    out.loss.backward()
    return logits.grad, out


def expectation(student: Tensor, values: Tensor) -> Tensor:
    """E_p over the first dimension."""
    return torch.einsum("v,v...->...", student.softmax(-1), values)


def top_k(estimator: str, k: int = 3) -> int | None:
    """k for the estimators that have one."""
    return k if vopd.ESTIMATORS[estimator].needs_top_k else None

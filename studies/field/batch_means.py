"""Losses whose advantages depend on the whole batch: gradients in two passes, variances by drawing batches again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from studies.field.contexts import Context
from studies.field.forms import Form
from vopd.estimators import distillation_loss
from vopd.functional.moments import not_none


def batches(contexts: Sequence[Context], size: int) -> Iterator[Sequence[Context]]:
    """Whole batches of this size, in order; what is left over is dropped."""
    return (contexts[start : start + size] for start in range(0, len(contexts) - size + 1, size))


def batch_gradient(form: Form, logits: Tensor, teacher: Tensor, tokens: Tensor, completion: Tensor) -> Tensor:
    """Gradient in the logits of a batch, (N, V), with what the form subtracts computed in a first pass.

    Args:
        form: an estimator of advantages, with or without a mean of the batch.
        logits: (N, V), those of the student.
        teacher: (N, V).
        tokens: y, (N,).
        completion: the completion that each token belongs to, (N,).
    """
    rows = logits.detach().requires_grad_()
    extra = None
    if form.batch_mean is not None:
        first = distillation_loss(rows.detach(), teacher, tokens, estimator=form.estimator)
        extra = -form.batch_mean(not_none(first.advantages), completion)
    second = distillation_loss(rows, teacher, tokens, estimator=form.estimator, extra_advantages=extra, normalizer=1.0)
    (found,) = torch.autograd.grad(second.loss, rows)
    return found


def batch_variances(batch: Sequence[Context], form: Form, resamples: int, seed: int) -> tuple[Tensor, float]:
    """Var g_m of each context of a batch, (B,), and the variance of the batch's mean times B.

    Equal seeds draw equal tokens. The second exceeds the mean of the first by what contexts have in common through the
    mean of the batch.
    """
    logits = torch.cat([context.logits.detach() for context in batch])
    teacher = torch.cat([context.teacher_logits for context in batch])
    lengths = [len(context.logits) for context in batch]
    completion = torch.arange(len(batch)).repeat_interleave(torch.tensor(lengths))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(logits.softmax(-1), resamples, True, generator=generator).T
    total, squares, whole = torch.zeros(()), torch.zeros(len(batch)).double(), 0.0
    for tokens in drawn:
        parts = batch_gradient(form, logits, teacher, tokens, completion).split(lengths)
        found = torch.stack([c.carried(part) for c, part in zip(batch, parts, strict=True)]).double()
        total = total + found
        squares += found.square().sum(-1)
        whole += float(found.mean(0).square().sum())
    own = (squares - total.square().sum(-1) / resamples) / (resamples - 1)
    return own, (whole - float(total.mean(0).square().sum()) / resamples) / (resamples - 1) * len(batch)

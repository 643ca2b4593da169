"""What the loss functions return."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vopd.kernels import Result


class Variance(NamedTuple):
    """Closed-form logit-space variance of the token gradient under three baselines, per token, nats^2."""

    none: Tensor
    value: Tensor
    optimal: Tensor


@dataclass(frozen=True)
class DistillationOutput:
    """A loss with gradient, and what it was made of: detached, shaped like the completion ids, 0 where masked out.

    None marks what the estimator did not compute; exact and sampled quantities never share a name.

    Attributes:
        loss: sum of the token losses over the normaliser, a scalar.
        student_logprobs: log p(y), nats.
        teacher_logprobs: log q(y), nats.
        rewards: log q(y) - log p(y).
        baseline: b.
        advantages: r_y - b, before importance weights and without extra advantages.
        importance_weights: w as applied, 1 where none were given.
        reverse_kl: exact KL(p || q).
        entropy: of the student (with diagnostics).
        variance: under no baseline, the value and the optimal one (with diagnostics and full teacher rows).
    """

    loss: Tensor
    student_logprobs: Tensor
    importance_weights: Tensor
    teacher_logprobs: Tensor | None = None
    rewards: Tensor | None = None
    baseline: Tensor | None = None
    advantages: Tensor | None = None
    reverse_kl: Tensor | None = None
    entropy: Tensor | None = None
    variance: Variance | None = None


def unpack(loss: Tensor, result: Result, rows: Tensor, shape: torch.Size) -> DistillationOutput:
    """Spreads per-row results over the shape of the completion ids."""

    def spread(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        return values.new_zeros(shape.numel()).index_copy_(0, rows, values).view(shape)

    shown = {f.name for f in fields(DistillationOutput)} & {f.name for f in fields(Result)}
    named: dict[str, Any] = {name: spread(getattr(result, name)) for name in shown}
    variances = [spread(v) for v in (result.variance_none, result.variance_value, result.variance_optimal)]
    if all(v is not None for v in variances):
        named["variance"] = Variance(*variances)  # type: ignore[arg-type]
    return DistillationOutput(**{**named, "loss": loss})


class GradientInHand(torch.autograd.Function):
    """Gives a loss whose gradient was already computed in the forward pass.

    The gradients live on the context, not among saved tensors, which would copy a head-sized tensor. Backward scales
    them in place, so it can run once.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor | None], *inputs: Tensor | None) -> Tensor:
        """``inputs`` are the tensors that the gradients belong to, in order; None has no gradient."""
        ctx.gradients = gradients
        ctx.dtypes = [None if x is None else x.dtype for x in inputs]
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Scales the gradients by that of the loss."""
        if ctx.gradients is None:
            raise RuntimeError(
                "this distillation loss was already backpropagated, and its gradient is computed once: "
                "call the loss function again instead of using retain_graph"
            )
        (output,) = outputs
        scaled = [None if g is None else _scaled(g, output, dtype) for g, dtype in zip(ctx.gradients, ctx.dtypes)]
        ctx.gradients = None
        return None, None, *scaled


def _scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """gradient * factor in the dtype, in place where it can be; a float32 head gradient is narrowed only here, since
    one over a normaliser, or a loss scale, is in the factor."""
    if gradient.dtype == dtype:
        return gradient.mul_(factor)
    if gradient.is_cuda:  # one kernel that reads float32 and writes the other
        return torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))
    return gradient.mul_(factor).to(dtype)

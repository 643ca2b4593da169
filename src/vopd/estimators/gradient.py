"""Passes a gradient that was computed in the forward pass to autograd."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from jaxtyping import Float

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def outside_compilation(loss: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Exclude a loss function from ``torch.compile``.

    ``GradientInHand`` writes gradients in place in forward and scales them in place in backward, which torch.compile
    has handled incorrectly (https://github.com/pytorch/pytorch/issues/172956, issues/180642). Compilation would gain
    nothing: buffers are reused and row operations fused already, and a trace breaks a dozen times.
    """

    @functools.wraps(loss)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        # Not at import, where this would load torch._dynamo, which takes a second.
        disabled: Callable[_Arguments, _Result] = torch.compiler.disable(loss)
        return disabled(*args, **kwargs)

    return call


class GradientInHand(torch.autograd.Function):
    """A loss whose gradient was already computed in the forward pass.

    The gradients are kept on the context, because saved tensors would copy a head-sized tensor. Backward scales them in
    place, so it can run once only.
    """

    @staticmethod
    def forward(
        ctx: Any,
        loss: Float[Tensor, ""],
        gradients: list[Float[Tensor, " ..."] | None],
        *inputs: Float[Tensor, " ..."] | None,
    ) -> Float[Tensor, ""]:
        """Return the loss; ``gradients`` belong to ``inputs`` in order, None where an input gets no gradient."""
        ctx.gradients = gradients
        ctx.dtypes = [None if x is None else x.dtype for x in inputs]
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Float[Tensor, ""]) -> tuple[Float[Tensor, " ..."] | None, ...]:
        """Scale the gradients by the gradient of the loss."""
        if ctx.gradients is None:
            raise RuntimeError(
                "this distillation loss was already backpropagated and its gradient is freed; call the loss function "
                "again instead of using retain_graph"
            )
        (output,) = outputs
        scaled = [None if g is None else _scaled(g, output, dtype) for g, dtype in zip(ctx.gradients, ctx.dtypes)]
        ctx.gradients = None
        return None, None, *scaled


def _scaled(
    gradient: Float[Tensor, "*shape"], factor: Float[Tensor, ""], dtype: torch.dtype
) -> Float[Tensor, "*shape"]:
    """Return gradient * factor in the dtype, in place if possible. A float32 head gradient is rounded only here: the
    factor contains 1 / normalizer and a loss scale."""
    if gradient.dtype == dtype:
        return gradient.mul_(factor)
    if gradient.is_cuda:  # one kernel that reads float32 and writes the other dtype
        return torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))
    return gradient.mul_(factor).to(dtype)

"""The gradient that the pass has computed already, handed to autograd."""

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
    """The same function, which a step under ``torch.compile`` calls as it is.

    ``GradientInHand`` hands over what forward wrote in place and scales it in place in backward, which torch.compile
    has got wrong (https://github.com/pytorch/pytorch/issues/172956, issues/180642). Nor is there anything to gain:
    buffers are reused and the operations on rows fused already, and a trace breaks a dozen times.
    """

    @functools.wraps(loss)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        # Here and not at import, where it would load torch._dynamo: a second for whoever never calls a loss.
        disabled: Callable[_Arguments, _Result] = torch.compiler.disable(loss)
        return disabled(*args, **kwargs)

    return call


class GradientInHand(torch.autograd.Function):
    """Gives a loss whose gradient was already computed in the forward pass.

    The gradients live on the context, not among saved tensors, which would copy a head-sized tensor. Backward scales
    them in place, so it can run once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        loss: Float[Tensor, ""],
        gradients: list[Float[Tensor, " ..."] | None],
        *inputs: Float[Tensor, " ..."] | None,
    ) -> Float[Tensor, ""]:
        """``inputs`` are the tensors that the gradients belong to, in order; None has no gradient."""
        ctx.gradients = gradients
        ctx.dtypes = [None if x is None else x.dtype for x in inputs]
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Float[Tensor, ""]) -> tuple[Float[Tensor, " ..."] | None, ...]:
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


def _scaled(
    gradient: Float[Tensor, "*shape"], factor: Float[Tensor, ""], dtype: torch.dtype
) -> Float[Tensor, "*shape"]:
    """gradient * factor in the dtype, in place where it can be; a float32 head gradient is narrowed only here, since
    one over a normaliser, or a loss scale, is in the factor."""
    if gradient.dtype == dtype:
        return gradient.mul_(factor)
    if gradient.is_cuda:  # one kernel that reads float32 and writes the other
        return torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))
    return gradient.mul_(factor).to(dtype)

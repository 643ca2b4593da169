"""Products with an output head: logits of chosen rows in a buffer that is reused, and gradients that come back."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .row_pass import soft_cap

if TYPE_CHECKING:
    from jaxtyping import Float, Int

BUFFER_ALIGNMENT = 128
"""Row strides of buffers are multiples of it, whatever the vocabulary, so that loads of 16 bytes never straddle."""

GATHER_ELEMENTS = 1 << 25
"""Elements of a head that are gathered at a time: 64 MiB in half precision."""


logger = logging.getLogger("vopd")


@dataclass(frozen=True)
class Head:
    """An output head: logits = softcap tanh(scale (hidden @ weight.T + bias) / softcap).

    Attributes:
        weight: (V, D).
        bias: (V,) or None.
        scale: factor of the logits (Cohere's logit_scale).
        softcap: bound of the logits (Gemma's final_logit_softcapping); None for none.
    """

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None = None
    scale: float = 1.0
    softcap: float | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Head:
        """The same head with weight and bias changed."""
        return replace(self, weight=change(self.weight), bias=None if self.bias is None else change(self.bias))

    def detach(self) -> Head:
        """The same head without gradient."""
        return self.map(Tensor.detach)

    def to(self, device: torch.device) -> Head:
        """The same head on another device."""
        return self.map(lambda part: part.to(device))

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.weight.device

    def logits(self, hidden: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens V"]:
        """Logits (..., V) of a few hidden states (..., D), in float32 or wider. Products with all of them are for
        ``Projection``."""
        wide = hidden if hidden.dtype == torch.float64 else hidden.float()
        logits = wide @ self.weight.to(wide.dtype).T
        if self.bias is not None:
            logits = logits + self.bias.to(wide.dtype)
        return soft_cap(logits * self.scale, self.softcap)

    def options(self, model: str) -> dict[str, Any]:
        """What ``linear_distillation_loss`` is told of it besides its weight; `model` is "student" or "teacher"."""
        values = {"bias": self.bias, "logit_scale": self.scale, "softcap": self.softcap}
        return {f"{model}_{name}": value for name, value in values.items()}


class Projection:
    """Logits of one model over temperature, without their soft cap, a chunk of rows at a time.

    logits = alpha (hidden @ weight.T + bias) with alpha = scale / temperature, which costs nothing inside the
    product; the cap that remains to be applied is ``softcap`` = softcap / temperature. On CUDA the product takes half
    precision as it is and gives float32: rounding the logits themselves to bf16 would put an error of 0.02 to 0.08
    nats into each advantage. Elsewhere both sides are cast to ``dtype`` first. Under autocast both sides are rounded
    as a linear layer would round them, on every device, so that the logits are those that were sampled from; weights
    stay what they are, and their gradient in ``dtype``.
    """

    def __init__(
        self, hidden: Float[Tensor, "N D"], head: Head, vocab_size: int, temperature: float, dtype: torch.dtype
    ) -> None:
        self.dtype = dtype
        self.product_dtype = product_dtype(hidden, head.weight, dtype)
        self._rounded_to = None if dtype == torch.float64 else autocast_dtype(hidden.device)
        tell_of_tf32(hidden.device, self.product_dtype)
        tell_of_mixed(hidden.device, hidden.dtype, head.weight.dtype, self.product_dtype)
        self.alpha = head.scale / temperature
        self.softcap = None if head.softcap is None else head.softcap / temperature
        self._hidden = hidden
        self._weight = head.weight[:vocab_size]
        self._cast_weight: Tensor | None = None
        self._bias = None if head.bias is None else self._rounded(head.bias[:vocab_size]).to(dtype) * self.alpha
        self._vocab_size = vocab_size
        self._buffer: Tensor | None = None

    def weight(self) -> Float[Tensor, "V D"]:
        """The head's rows in the products' dtype, (V, D): cast once a call, not once a chunk."""
        if self._cast_weight is None:
            self._cast_weight = self._factor(self._weight)
        return self._cast_weight

    def hidden(self, rows: Int[Tensor, " C"]) -> Float[Tensor, "C D"]:
        """Hidden states of the rows in the products' dtype, (C, D)."""
        return self._factor(self._hidden.index_select(0, rows))

    def logits(self, rows: Int[Tensor, " C"]) -> Float[Tensor, "C V"]:
        """(C, V), in a buffer that the next call overwrites; before the soft cap."""
        if self._buffer is None:
            stride = -(-self._vocab_size // BUFFER_ALIGNMENT) * BUFFER_ALIGNMENT
            self._buffer = rows.new_empty(len(rows), stride, dtype=self.dtype)
        logits = self._buffer[: len(rows), : self._vocab_size]
        multiply(self.hidden(rows), self.weight().T, logits, self.alpha)
        return logits if self._bias is None else logits.add_(self._bias)

    def at(self, rows: Int[Tensor, " C"], ids: Int[Tensor, "C J"]) -> Float[Tensor, "C J"]:
        """Logits at ids with the soft cap, (C, J), from those rows of the head only, gathered some at a time."""
        step = max(1, GATHER_ELEMENTS // (ids.shape[-1] * self._weight.shape[-1]))
        parts = [self._at(*part) for part in zip(rows.split(step), ids.split(step))]
        return soft_cap(torch.cat(parts) if parts else rows.new_empty(ids.shape, dtype=self.dtype), self.softcap)

    def _at(self, rows: Int[Tensor, " C"], ids: Int[Tensor, "C J"]) -> Float[Tensor, "C J"]:
        weights, hidden = self._factor(self._weight[ids]), self.hidden(rows).unsqueeze(-1)
        if self.product_dtype == self.dtype:
            logits = torch.bmm(weights, hidden)
        elif weights.is_cuda:
            logits = torch.bmm(weights, hidden, out_dtype=self.dtype)
        else:
            logits = torch.bmm(weights.to(self.dtype), hidden.to(self.dtype))
        logits = logits.squeeze(-1).mul_(self.alpha)
        return logits if self._bias is None else logits.add_(self._bias[ids])

    def _factor(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self._rounded(values).to(self.product_dtype)

    def _rounded(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return values if self._rounded_to is None else values.to(self._rounded_to)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast has linear layers compute in on the device; None where it is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def product_dtype(hidden: Float[Tensor, "*tokens D"], weight: Float[Tensor, "V D"], dtype: torch.dtype) -> torch.dtype:
    """What the matrix products run in: half precision only on CUDA, where the model or autocast says so."""
    if hidden.device.type != "cuda" or dtype == torch.float64:
        return dtype
    return autocast_dtype(hidden.device) or (hidden.dtype if hidden.dtype == weight.dtype else dtype)


def tell_of_tf32(device: torch.device, dtype: torch.dtype) -> None:
    """Says once that float32 products are in TF32. The switch is one for all threads of a process, so it is the
    caller's."""
    if device.type == "cuda" and dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        _say_tf32()


@functools.cache
def _say_tf32() -> None:
    logger.warning(
        "float32 products run in TF32 here (tf32: true, or torch.set_float32_matmul_precision), so those of the "
        "distillation loss keep 10 of the 23 bits of each factor; for all of them set "
        "torch.backends.cuda.matmul.fp32_precision = 'ieee'"
    )


def tell_of_mixed(device: torch.device, hidden: torch.dtype, weight: torch.dtype, product: torch.dtype) -> None:
    """Says once that hidden states and a head of two dtypes keep the products out of half precision."""
    if device.type == "cuda" and hidden != weight and product == torch.float32:
        _say_mixed(*(str(dtype).removeprefix("torch.") for dtype in (hidden, weight)))


@functools.cache
def _say_mixed(hidden: str, weight: str) -> None:
    logger.warning(
        f"hidden states in {hidden} and an output head in {weight}: the products of the distillation loss run in "
        "float32; for half precision train with bf16: true, call the loss under torch.autocast, or give both one dtype"
    )


def multiply(
    left: Float[Tensor, "X Y"],
    right: Float[Tensor, "Y Z"],
    out: Float[Tensor, "X Z"],
    alpha: float = 1.0,
    accumulate: bool = False,
) -> Float[Tensor, "X Z"]:
    """out = alpha left @ right, plus out itself with ``accumulate``; half inputs are summed in ``out``'s float32."""
    if left.dtype == out.dtype:
        if alpha == 1 and not accumulate:
            return torch.mm(left, right, out=out)
        return torch.addmm(out, left, right, beta=int(accumulate), alpha=alpha, out=out)
    if not left.is_cuda:  # only CUDA has products of one dtype into another
        return multiply(left.to(out.dtype), right.to(out.dtype), out, alpha, accumulate)
    # `out` as the first argument too is float32 beside half inputs, which torch accepts since 2.10.
    return torch.addmm(out, left, right, out_dtype=out.dtype, beta=int(accumulate), alpha=alpha, out=out)

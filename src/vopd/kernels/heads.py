"""Matrix products with an output head: logits of selected rows in a reused buffer, and gradients."""

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
"""Row strides of buffers are multiples of this, for any vocabulary, so that 16-byte loads are aligned."""

GATHER_ELEMENTS = 1 << 25
"""Elements of a head that are gathered at once: 64 MiB in half precision."""

CAST_ROWS = 1 << 13
"""Rows of a head that are in float32 at once: 128 MiB at width 4,096."""


logger = logging.getLogger("vopd")


@dataclass(frozen=True)
class Head:
    """An output head: logits = softcap tanh(scale (hidden @ weight.T + bias) / softcap).

    Attributes:
        weight: (V, D).
        bias: (V,) or None.
        scale: factor of the logits (Cohere's logit_scale).
        softcap: cap of the logits (Gemma's final_logit_softcapping); None without a cap.
    """

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None = None
    scale: float = 1.0
    softcap: float | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Head:
        """Return the head with `change` applied to weight and bias."""
        return replace(self, weight=change(self.weight), bias=None if self.bias is None else change(self.bias))

    def detach(self) -> Head:
        """Return the head without gradient."""
        return self.map(Tensor.detach)

    def to(self, device: torch.device) -> Head:
        """Return the head on another device."""
        return self.map(lambda part: part.to(device))

    @property
    def device(self) -> torch.device:
        """Device of the weight."""
        return self.weight.device

    def logits(self, hidden: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens V"]:
        """Return logits, (..., V), of a few hidden states, (..., D), in float32 or wider."""
        wide = hidden if hidden.dtype == torch.float64 else hidden.float()
        # A part at a time: a whole head in float32 may be larger than what is free on the device.
        logits = torch.cat([wide @ rows.to(wide.dtype).T for rows in self.weight.split(CAST_ROWS)], dim=-1)
        if self.bias is not None:
            logits = logits + self.bias.to(wide.dtype)
        return soft_cap(logits * self.scale, self.softcap)

    def options(self, model: str) -> dict[str, Any]:
        """Return the head's options as arguments of ``linear_distillation_loss``; `model` is "student" or "teacher"."""
        values = {"bias": self.bias, "logit_scale": self.scale, "softcap": self.softcap}
        return {f"{model}_{name}": value for name, value in values.items()}


class Projection:
    """Logits of one model divided by temperature, without the soft cap, for one chunk of rows at a time.

    logits = alpha (hidden @ weight.T + bias) with alpha = scale / temperature, which is free inside the product. The
    soft cap that is still to be applied is ``softcap`` = softcap / temperature.

    On CUDA the product takes half-precision inputs and returns float32: rounding the logits to bf16 would add an error
    of 0.02 to 0.08 nats to each advantage. On other devices both factors are cast to ``dtype`` first. Under autocast
    both factors are rounded as in a linear layer, on every device, so that the logits are those that were sampled from.
    Weights are unchanged, and their gradient is in ``dtype``.
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
        """Return the head's rows in the dtype of the products, (V, D); cast once, not for every chunk."""
        if self._cast_weight is None:
            self._cast_weight = self._factor(self._weight)
        return self._cast_weight

    def hidden(self, rows: Int[Tensor, " C"]) -> Float[Tensor, "C D"]:
        """Return the hidden states of the rows in the dtype of the products, (C, D)."""
        return self._factor(self._hidden.index_select(0, rows))

    def logits(self, rows: Int[Tensor, " C"]) -> Float[Tensor, "C V"]:
        """Return logits before the soft cap, (C, V), in a buffer that the next call overwrites."""
        if self._buffer is None:
            stride = -(-self._vocab_size // BUFFER_ALIGNMENT) * BUFFER_ALIGNMENT
            self._buffer = rows.new_empty(len(rows), stride, dtype=self.dtype)
        logits = self._buffer[: len(rows), : self._vocab_size]
        multiply(self.hidden(rows), self.weight().T, logits, self.alpha)
        return logits if self._bias is None else logits.add_(self._bias)

    def at(self, rows: Int[Tensor, " C"], ids: Int[Tensor, "C J"]) -> Float[Tensor, "C J"]:
        """Return logits at ids with the soft cap, (C, J), from these rows of the head only, gathered in parts."""
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
    """Return the dtype in which autocast runs linear layers on the device; None if autocast is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def product_dtype(hidden: Float[Tensor, "*tokens D"], weight: Float[Tensor, "V D"], dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the matrix products: half precision only on CUDA, if the model or autocast uses it."""
    if hidden.device.type != "cuda" or dtype == torch.float64:
        return dtype
    return autocast_dtype(hidden.device) or (hidden.dtype if hidden.dtype == weight.dtype else dtype)


def tell_of_tf32(device: torch.device, dtype: torch.dtype) -> None:
    """Warn once if float32 products run in TF32. The setting is global to the process, so it is left to the caller."""
    if device.type == "cuda" and dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        _say_tf32()


@functools.cache
def _say_tf32() -> None:
    logger.warning(
        "float32 products run in TF32 here (tf32: true, or torch.set_float32_matmul_precision), so those of the "
        "distillation loss keep 10 of the 23 bits of each factor; to keep all bits set "
        "torch.backends.cuda.matmul.fp32_precision = 'ieee'"
    )


def tell_of_mixed(device: torch.device, hidden: torch.dtype, weight: torch.dtype, product: torch.dtype) -> None:
    """Warn once if products run in float32 because hidden states and head have different dtypes."""
    if device.type == "cuda" and hidden != weight and product == torch.float32:
        _say_mixed(*(str(dtype).removeprefix("torch.") for dtype in (hidden, weight)))


@functools.cache
def _say_mixed(hidden: str, weight: str) -> None:
    logger.warning(
        f"hidden states are in {hidden} and the output head is in {weight}, so the products of the distillation loss "
        "run in float32; for half precision train with bf16: true, call the loss under torch.autocast, or use one dtype"
    )


def multiply(
    left: Float[Tensor, "X Y"],
    right: Float[Tensor, "Y Z"],
    out: Float[Tensor, "X Z"],
    alpha: float = 1.0,
    accumulate: bool = False,
) -> Float[Tensor, "X Z"]:
    """Write alpha left @ right to ``out``, or add it with ``accumulate``; half inputs are summed in float32."""
    if left.dtype == out.dtype:
        if alpha == 1 and not accumulate:
            return torch.mm(left, right, out=out)
        return torch.addmm(out, left, right, beta=int(accumulate), alpha=alpha, out=out)
    if not left.is_cuda:  # only CUDA supports an output of another dtype
        return multiply(left.to(out.dtype), right.to(out.dtype), out, alpha, accumulate)
    # `out` as the first argument too is float32 beside half inputs, which torch accepts since 2.10.
    return torch.addmm(out, left, right, out_dtype=out.dtype, beta=int(accumulate), alpha=alpha, out=out)

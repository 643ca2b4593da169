"""What the loss takes from a forward pass: last hidden states and the output head, without computing logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vopd.kernels import Head

Padded = tuple[Tensor, Tensor, int, int | None]
"""What ``last_hidden_states`` takes beside the model."""


@dataclass(frozen=True)
class States:
    """Last hidden states and output head of one model, from which its logits can be computed.

    Attributes:
        hidden: (B, T, H); the state at t predicts ``completion_ids[:, t]``.
        head: weight (V, H), and bias, scale and soft cap of the logits, if any.
    """

    hidden: Tensor
    head: Head

    def to(self, device: torch.device) -> States:
        """Return the states on another device."""
        return States(self.hidden.to(device), self.head.to(device))


def layers_of(model: Any) -> Any:
    """Return what is below the output head of a model, with or without adapters, not wrapped otherwise."""
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model


def last_hidden_states(
    model: Any, input_ids: Tensor, attention_mask: Tensor, count: int, width: int | None = None
) -> Tensor:
    """Return the hidden states, (B, count, H), that predict the last `count` tokens.

    The model reads every row from its first token that is not padding, so that a token has the position at which
    ``generate`` sampled it. What is left of the padding is on the right, where no token attends to it: the model needs
    no attention mask, and its causal attention runs as without padding.

    Args:
        model: not wrapped, but may have adapters; its attention is causal.
        input_ids: (B, L), padded on the left, on the right, or on both sides.
        attention_mask: (B, L), 0 on padding.
        count: number of last tokens. States at positions that are padding mean nothing.
        width: tokens of the longest row, if known on the host: no more positions are computed than these. Default: L.
    """
    length = input_ids.size(1)
    width = length if width is None else width
    first = attention_mask.to(torch.long).argmax(1, keepdim=True)
    columns = first + torch.arange(width, device=first.device)
    rows = input_ids.gather(1, columns.clamp(max=length - 1))
    hidden: Tensor = layers_of(model)(input_ids=rows, use_cache=False).last_hidden_state
    before = torch.arange(length - count - 1, length - 1, device=first.device) - first
    return hidden.gather(1, before.clamp(0, width - 1).to(hidden.device).unsqueeze(-1).expand(-1, -1, hidden.size(-1)))

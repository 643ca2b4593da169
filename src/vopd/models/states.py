"""What the loss takes from a forward pass: last hidden states and the output head, without computing logits."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vopd.kernels import Head


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


def last_hidden_states(model: Any, input_ids: Tensor, attention_mask: Tensor, count: int) -> Tensor:
    """Return the hidden states, (B, count, H), that predict the last `count` tokens.

    Position ids start at the first token that is not padding, as in ``generate``. Otherwise a model with absolute
    positions would score a left-padded prompt at other positions than those it was sampled at.

    Args:
        model: not wrapped, but may have adapters.
        input_ids: (B, L), prompts padded on the left.
        attention_mask: (B, L).
        count: number of last tokens.
    """
    backbone = layers_of(model)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    if "position_ids" in inspect.signature(backbone.forward).parameters:
        inputs["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    hidden: Tensor = backbone(**inputs).last_hidden_state
    return hidden[:, -1 - count : -1]

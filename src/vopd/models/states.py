"""What a forward pass leaves to the loss: last hidden states and the output head, their product unformed."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vopd.kernels import Head


@dataclass(frozen=True)
class States:
    """Last hidden states and output head of one model: its full rows of logits, unformed.

    Attributes:
        hidden: (B, T, H); the state at t predicts ``completion_ids[:, t]``.
        head: weight (V, H), and bias, scale and soft cap of the logits where there are any.
    """

    hidden: Tensor
    head: Head

    def to(self, device: torch.device) -> States:
        """The same on another device."""
        return States(self.hidden.to(device), self.head.to(device))


def last_hidden_states(model: Any, input_ids: Tensor, attention_mask: Tensor, count: int) -> Tensor:
    """Hidden states (B, count, H) that predict the last `count` tokens; `model` is not wrapped, but may have adapters.

    Position ids are counted from the first token that is not padding, as ``generate`` counts them: without them a model
    with absolute positions would score a left-padded prompt at other positions than it was continued at.
    """
    backbone = (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    if "position_ids" in inspect.signature(backbone.forward).parameters:
        inputs["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    hidden: Tensor = backbone(**inputs).last_hidden_state
    return hidden[:, -1 - count : -1]

"""What is checked and set before the loss reads two models' hidden states and output heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vopd.errors import ConfigurationError, MismatchError
from vopd.kernels import Head

_TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-5}
"""Largest difference, relative to the largest logit, by dtype; float32 leaves room for TF32."""
_HALF_TOLERANCE = 3e-2

_BEFORE_THE_LAYERS = {"XLORA", "POLY", "SHADOW"}
"""PEFT methods that choose among adapters, or prepare them, on the way to the model's layers."""


def check_adapters(model: Any, name: str) -> None:
    """Raises ConfigurationError if the loss would pass over adapters of `model`.

    The loss calls the layers under the head. Some adapters act before that: in front of the embedding, from an
    invocation sequence on, or by a choice for every input.

    Args:
        model: unwrapped, with or without adapters.
        name: "student" or "teacher".
    """
    if not hasattr(model, "get_base_model"):
        return
    for adapter in model.active_adapters:
        config = model.peft_config[adapter]
        kind, invoked = config.peft_type.value, getattr(config, "alora_invocation_tokens", None)
        if invoked or config.is_prompt_learning or kind in _BEFORE_THE_LAYERS:
            raise ConfigurationError(
                f"the {name} has adapters of kind {'activated LoRA' if invoked else kind}, which act outside the "
                "model's layers, while the loss calls these layers alone; use LoRA or another method that changes the "
                "layers themselves"
            )


def check_logits(logits: Tensor, hidden: Tensor, head: Head, name: str) -> None:
    """Raises MismatchError unless the loss would compute the logits that the model computes itself.

    Args:
        logits: (N, V) as the model computes them.
        hidden: (N, H), the hidden states that the loss would use.
        head: as it was read from the model.
        name: "student" or "teacher".
    """
    expected = head.logits(hidden)[:, : logits.shape[-1]]
    scale = expected.abs().max().clamp(min=1e-6)
    tolerance = max(_TOLERANCE.get(part.dtype, _HALF_TOLERANCE) for part in (hidden, head.weight))
    if not torch.allclose(logits.to(expected.dtype) / scale, expected / scale, rtol=0, atol=tolerance):
        raise MismatchError(
            f"the {name}'s logits are not what its last hidden state, its output head and its configuration (scale "
            f"{head.scale:g}, soft cap {head.softcap}) give, so the loss would train towards something else; this "
            "model family is not supported"
        )


def check_not_shared(student: nn.Module, teacher: nn.Module) -> None:
    """Raises ConfigurationError if training the student would change the teacher."""
    own = {id(parameter) for parameter in student.parameters()}
    if any(id(parameter) in own for parameter in teacher.parameters()):
        raise ConfigurationError(
            "model and teacher_model share parameters, so the teacher would change with every step; "
            "load the teacher on its own, or pass its path as teacher_model"
        )


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout of `model` to 0, also those that attention layers keep as plain numbers.

    TRL's ``disable_dropout`` knows ``nn.Dropout`` only and leaves ``attention_dropout`` on.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if ("dropout" in name or name == "layerdrop") and isinstance(value, float):
                setattr(module, name, 0.0)

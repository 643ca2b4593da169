"""Checks and settings before the loss reads hidden states and output heads of two models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vopd.errors import ConfigurationError, MismatchError, NonFiniteError
from vopd.kernels import Head

_TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-5}
"""Largest difference, relative to the largest logit, by dtype; float32 leaves room for TF32."""
_HALF_TOLERANCE = 3e-2

_BEFORE_THE_LAYERS = {"XLORA", "POLY", "SHADOW"}
"""PEFT methods that select or prepare adapters before the model's layers run."""


def check_adapters(model: Any, name: str) -> None:
    """Check that the loss does not ignore adapters of `model`.

    The loss calls the layers below the output head. Some adapters act outside them: before the embedding, from an
    invocation sequence on, or by a selection per input.

    Args:
        model: an unwrapped model, with or without adapters.
        name: "student" or "teacher", for messages.

    Raises:
        ConfigurationError: the loss would ignore an adapter.
    """
    if not hasattr(model, "get_base_model"):
        return
    for adapter in model.active_adapters:
        config = model.peft_config[adapter]
        kind, invoked = config.peft_type.value, getattr(config, "alora_invocation_tokens", None)
        if invoked or config.is_prompt_learning or kind in _BEFORE_THE_LAYERS:
            raise ConfigurationError(
                f"the {name} has adapters of kind {'activated LoRA' if invoked else kind}, which act outside the "
                "model's layers, but the loss calls only these layers; use LoRA or another method that changes the "
                "layers themselves"
            )


def check_logits(logits: Tensor, hidden: Tensor, head: Head, name: str) -> None:
    """Check that the loss computes the same logits as the model.

    Args:
        logits: (N, V), computed by the model.
        hidden: (N, H), the hidden states that the loss uses.
        head: the output head read from the model.
        name: "student" or "teacher", for messages.

    Raises:
        MismatchError: the logits differ.
        NonFiniteError: a logit is NaN.
    """
    if logits.isnan().any():
        raise NonFiniteError(
            f"the {name}'s logits are NaN before training: its weights are damaged, or too large for the dtype "
            f"({logits.dtype}); load it in another dtype, or take a checkpoint from before it diverged"
        )
    expected = head.logits(hidden)[:, : logits.shape[-1]]
    scale = expected.abs().max().clamp(min=1e-6)
    tolerance = max(_TOLERANCE.get(part.dtype, _HALF_TOLERANCE) for part in (hidden, head.weight))
    if not torch.allclose(logits.to(expected.dtype) / scale, expected / scale, rtol=0, atol=tolerance):
        raise MismatchError(
            f"the {name}'s logits differ from those computed from its last hidden state, output head and configuration "
            f"(scale {head.scale:g}, soft cap {head.softcap}), so the loss would train towards a wrong target; this "
            "model family is not supported"
        )


def check_not_shared(student: nn.Module, teacher: nn.Module) -> None:
    """Raise ConfigurationError if the models share parameters: training the student would change the teacher."""
    own = {id(parameter) for parameter in student.parameters()}
    if any(id(parameter) in own for parameter in teacher.parameters()):
        raise ConfigurationError(
            "model and teacher_model share parameters, so the teacher would change with every step; "
            "load the teacher separately, or pass its path as teacher_model"
        )


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability of `model` to 0, including those that attention layers store as numbers.

    TRL's ``disable_dropout`` handles ``nn.Dropout`` only and leaves ``attention_dropout`` on.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if ("dropout" in name or name == "layerdrop") and isinstance(value, float):
                setattr(module, name, 0.0)

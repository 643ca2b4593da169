"""Which output heads the loss can read, and what is checked before it does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigurationError, MismatchError

# Names under which configurations keep a transformation of the logits, with the values that mean none.
_TRANSFORMATIONS = {
    "final_logit_softcapping": (None,),
    "logit_scale": (None, 1.0),
    "logits_scaling": (None, 1.0),
    "output_multiplier": (None, 1.0),
    "lm_head_multiplier": (None, 1.0),
}


def check_head(model: Any, name: str) -> Tensor:
    """The weight (V, H) of the output head of `model`; `name` is "student" or "teacher".

    Raises:
        MismatchError: its logits are not plainly hidden @ head.T, or there is no head.
        ConfigurationError: a PEFT adapter sits on it.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise MismatchError(f"the {name} has no output head; use a causal language model")
    if hasattr(head, "base_layer"):
        raise ConfigurationError(
            f"a PEFT adapter on the {name}'s output head is not supported: the loss multiplies hidden states with the "
            "head's weight itself, so the adapter would get no gradient; remove the head from target_modules, or "
            "train it whole with modules_to_save"
        )
    if getattr(head, "bias", None) is not None:
        raise MismatchError(f"the {name}'s output head has a bias, which is not supported; use another model family")
    config = model.config.get_text_config()
    for setting, plain in _TRANSFORMATIONS.items():
        value = getattr(config, setting, None)
        if value not in plain:
            raise MismatchError(
                f"the {name} transforms its logits ({setting}={value}), which is not supported; "
                "use another model family"
            )
    return head.weight


def check_plain_logits(logits: Tensor, hidden: Tensor, head: Tensor, name: str) -> None:
    """Raises MismatchError unless logits = hidden @ head.T, whatever the configuration says.

    Args:
        logits: (N, V) as the model computes them.
        hidden: (N, H), the hidden states that the loss would use.
        head: (V, H).
        name: "student" or "teacher".
    """
    expected = (hidden.float() @ head.float().T)[:, : logits.shape[-1]]
    scale = expected.abs().max().clamp(min=1e-6)
    if not torch.allclose(logits.float() / scale, expected / scale, atol=3e-2):
        raise MismatchError(
            f"the {name}'s logits are not its last hidden state times its output head, so the loss would train towards "
            "something else; this model family is not supported"
        )


def check_not_shared(student: nn.Module, teacher: nn.Module) -> None:
    """Raises ConfigurationError if training the student would change the teacher."""
    if student is teacher:
        raise ConfigurationError(
            "model and teacher_model are the same object, so the teacher would change with every step; "
            "load it twice, or pass its path as teacher_model"
        )
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

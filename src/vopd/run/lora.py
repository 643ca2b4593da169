"""The LoRA adapters that `vopd train` makes of its options."""

from __future__ import annotations

from typing import Any

import peft
import torch

from vopd.errors import ConfigurationError, first_line

from .plan import TrainOptions


def lora_config(options: TrainOptions, student: Any) -> peft.LoraConfig | None:
    """Return the configuration of the adapters, or None where every weight is trained.

    Raises:
        ConfigurationError: the adapters would sit on the output head.
    """
    if options.lora_rank == 0:
        return None
    targets = options.lora_target_modules
    head = _head_name(student)
    if any(target.split(".")[-1] == head for target in targets):
        raise ConfigurationError(
            f"lora_target_modules names the output head '{head}', which can have no adapter: the loss reads its "
            "weight directly; leave it out"
        )
    rank = options.lora_rank
    return peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank if options.lora_alpha is None else options.lora_alpha,
        lora_dropout=0.0,  # a rollout and its gradient must see one policy
        target_modules=targets[0] if targets == ["all-linear"] else targets,
        task_type="CAUSAL_LM",
    )


def check_lora(options: TrainOptions, skeleton: Any) -> None:
    """Put adapters without weights into the skeleton of the student.

    Raises:
        ConfigurationError: it has no such modules, or they are the output head.
    """
    adapters = lora_config(options, skeleton)
    if adapters is not None:
        try:
            with torch.device("meta"):
                peft.get_peft_model(skeleton, adapters)
        except ValueError as error:
            raise ConfigurationError(f"lora_target_modules: {first_line(error)}") from error


def _head_name(model: Any) -> str:
    head = model.get_output_embeddings()
    return next((name.split(".")[-1] for name, module in model.named_modules() if module is head), "lm_head")

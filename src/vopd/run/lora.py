"""The LoRA adapter that the options of `vopd train` describe."""

from __future__ import annotations

import warnings
from typing import Any

import peft
import torch
from transformers.utils import find_adapter_config_file

from vopd.errors import ConfigurationError, first_line
from vopd.models import read_head

from .plan import TrainOptions


def lora_config(options: TrainOptions) -> peft.LoraConfig | None:
    """Return the configuration of the adapter, or None if all weights are trained."""
    rank, targets = options.lora_rank, options.lora_target_modules
    if rank == 0:
        return None
    return peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank if options.lora_alpha is None else options.lora_alpha,
        lora_dropout=0.0,  # sampling and gradient must use the same policy
        target_modules=targets[0] if targets == ["all-linear"] else targets,
        task_type="CAUSAL_LM",
    )


def check_lora(options: TrainOptions, skeleton: Any) -> None:
    """Add an adapter without weights to the student's skeleton.

    Raises:
        ConfigurationError: the student is an adapter itself, has no such modules, or one of them is the output head.
    """
    if find_adapter_config_file(options.model, revision=options.model_revision) is not None:
        # A new adapter would be saved for the plain base, without the one that it was trained on.
        raise ConfigurationError(
            f"the student '{options.model}' is a LoRA adapter; merge it into its base model first: vopd merge --model "
            f"{options.model} --output MERGED, then --model MERGED (in Python, pass PeftModel.from_pretrained(base, "
            f"'{options.model}', is_trainable=True) as model)"
        )
    adapters = lora_config(options)
    if adapters is not None:
        try:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the adapter that is trained warns again
                peft.get_peft_model(skeleton, adapters)
            read_head(skeleton, "student")
        except ValueError as error:
            raise ConfigurationError(f"lora_target_modules: {first_line(error)}") from error

"""The adapter that `vopd train` trains: a new one that its options describe, or the one that the student is."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import peft
import torch

from vopd.errors import ConfigurationError, first_line
from vopd.models import read_head
from vopd.models.files.adapter_folders import Adapter, find_adapter
from vopd.models.files.model_paths import check_source
from vopd.models.head_checks import check_adapters

if TYPE_CHECKING:
    from .plan import TrainOptions


def lora_config(options: TrainOptions) -> peft.LoraConfig | None:
    """Return the configuration of a new adapter; None if all weights are trained, or the student's own adapter."""
    rank, targets = options.lora_rank, options.lora_target_modules
    if rank == 0 or find_adapter(options.model, options.model_revision) is not None:
        return None
    return peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank if options.lora_alpha is None else options.lora_alpha,
        lora_dropout=0.0,  # sampling and gradient must use the same policy
        target_modules=targets[0] if targets == ["all-linear"] else targets,
        task_type="CAUSAL_LM",
        revision=options.model_revision,  # of the base, which the adapter belongs to
    )


def check_lora_options(options: TrainOptions) -> bool:
    """Whether the run trains an adapter: a new one of lora_rank, or the one that the student is.

    Raises:
        ConfigurationError: an option needs an adapter and there is none, or contradicts the student's own.
        MismatchError: there is no such student.
    """
    check_source(options.model, options.model_revision)  # first: looking for a file on the hub would try six times
    adapter = find_adapter(options.model, options.model_revision)
    if adapter is not None:
        _check_continued(options, adapter)
    elif options.lora_rank == 0 and options.quantization is not None:
        raise ConfigurationError("quantization freezes the student: set lora_rank, for example lora_rank=64")
    elif options.lora_rank == 0 and options.lora_alpha is not None:
        raise ConfigurationError("lora_alpha needs lora_rank, for example lora_rank=64")
    return adapter is not None or options.lora_rank > 0


def _check_continued(options: TrainOptions, adapter: Adapter) -> None:
    """Training goes on with the student's own adapter: options of a new one may only repeat what it has."""
    for name, given, own in (
        ("lora_rank", options.lora_rank or None, adapter.config.get("r")),
        ("lora_alpha", options.lora_alpha, adapter.config.get("lora_alpha")),
    ):
        if given is not None and given != own:
            raise _contradiction(adapter, f"{name}={given}", adapter.kind if own is None else f"{name}={own}")
    asked, has = options.lora_target_modules, adapter.config.get("target_modules") or []
    names = {has} if isinstance(has, str) else {str(module).split(".")[-1] for module in has}
    if asked != ["all-linear"] and {module.split(".")[-1] for module in asked} != names:
        shown = (f"lora_target_modules={','.join(modules)}" for modules in (asked, sorted(names)))
        raise _contradiction(adapter, *shown)


def _contradiction(adapter: Adapter, given: str, own: str) -> ConfigurationError:
    return ConfigurationError(
        f"{given} contradicts the student '{adapter.source}', an adapter with {own}, which is trained further; leave "
        f"{given.partition('=')[0]} out, or merge it first to train a new adapter: vopd merge --model {adapter.source} "
        "--output MERGED"
    )


def add_adapter(options: TrainOptions, skeleton: Any) -> None:
    """Add the adapter that the options describe, without weights, to the student's skeleton.

    Raises:
        ConfigurationError: there are no such modules, or the student has an adapter that cannot be trained.
    """
    adapters = None if hasattr(skeleton, "peft_config") else lora_config(options)
    if adapters is not None:
        try:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the adapter that is trained warns again
                peft.get_peft_model(skeleton, adapters)
            read_head(skeleton, "student")
        except ValueError as error:
            raise ConfigurationError(f"lora_target_modules: {first_line(error)}") from error
    check_adapters(skeleton, "student")
    if hasattr(skeleton.config, "quantization_config") and not hasattr(skeleton, "peft_config"):
        raise ConfigurationError(
            f"the weights of '{options.model}' are stored quantized, and cannot be trained themselves; set lora_rank, "
            "for example lora_rank=64, or name the model that was quantized"
        )

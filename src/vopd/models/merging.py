"""A LoRA adapter and its base model merged into one model without adapters, by PEFT's own merge."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vopd.errors import ConfigurationError, MismatchError, first_line, require

from .adapters import tied_and_trained_apart
from .files.adapter_folders import CONFIG, Adapter, attach, find_adapter
from .files.model_paths import check_source
from .loading import load_configuration, load_model, load_tokenizer, saved_generation_config

_INSTEAD = "load the adapter on its base model with PEFT instead"


@dataclass(frozen=True)
class Merged:
    """A merged model.

    Attributes:
        model: without adapters, with the generation configuration saved next to the adapter.
        tokenizer: saved next to the adapter; otherwise the base model's.
        adapter: the folder that the adapter was read from.
        base: path or hub id of the base model.
        dtype: of the merged weights.
        dequantized: the base model's own weights were quantized, and were converted to `dtype` first.
    """

    model: Any
    tokenizer: Any
    adapter: Path
    base: str
    dtype: str
    dequantized: bool


def merge_adapter(
    source: str, *, dtype: str = "auto", revision: str | None = None, base_model: str | None = None
) -> Merged:
    """Load an adapter and its base model on the CPU and merge them: W + scale B A for each adapted weight of LoRA.

    Args:
        source: a folder or hub id with adapter_config.json.
        dtype: dtype of the base model and of the merged weights, as `load_model` takes it; "auto" keeps the saved one.
        revision: branch, tag or commit of a hub id.
        base_model: folder or hub id of the base model; default: the one that the adapter names.

    Raises:
        MismatchError: there is no adapter, no such base model, or they do not fit together.
        ConfigurationError: PEFT cannot merge this kind of adapter.
    """
    adapter = adapter_of(source, revision)
    base, base_revision = (base_model, None) if base_model else (adapter.base, adapter.base_revision)
    try:
        dequantized = hasattr(load_configuration(base, revision=base_revision).config, "quantization_config")
        model = load_model(base, dtype=dtype, revision=base_revision)
    except MismatchError as error:
        raise MismatchError(f"the base model of '{source}': {error}; --base_model names another place") from error
    if dequantized:
        model = model.dequantize()
        model = model if dtype == "auto" else model.to(dtype=getattr(require("torch", "train"), dtype))
    adapted, folder = attach(model, adapter), adapter.folder()
    merged = _merged(adapted, source)
    merged.generation_config = saved_generation_config(folder, merged.generation_config)
    own = (folder / "tokenizer_config.json").exists()
    tokenizer = load_tokenizer(folder) if own else load_tokenizer(base, revision=base_revision)
    return Merged(merged, tokenizer, folder, base, str(merged.dtype).removeprefix("torch."), dequantized)


def _merged(adapted: Any, source: str) -> Any:
    """The model without adapters. PEFT's safe merge looks for NaN before it changes a weight."""
    kind = getattr(adapted.peft_config["default"].peft_type, "value", "unknown")
    cannot = f"PEFT cannot merge the adapter '{source}' of kind {kind}"
    if not hasattr(adapted, "merge_and_unload"):
        raise ConfigurationError(f"{cannot}, which does not change weights; {_INSTEAD}")
    if tied_and_trained_apart(adapted):
        raise ConfigurationError(
            f"the adapter '{source}' changes the output head or the embedding, which are one weight in the base model; "
            f"{_INSTEAD}"
        )
    try:
        return adapted.merge_and_unload(safe_merge=True).eval()
    except (NotImplementedError, ValueError, RuntimeError, AttributeError) as error:
        raise ConfigurationError(f"{cannot} ({first_line(error)}); {_INSTEAD}") from error


def adapter_of(source: str, revision: str | None) -> Adapter:
    """Return the adapter of a folder or hub id.

    Raises:
        MismatchError: there is no such adapter.
    """
    if Path(source).is_dir() and not any((Path(source) / name).exists() for name in (CONFIG, "config.json")):
        raise MismatchError(f"'{source}' has no {CONFIG}; give the folder of an adapter, such as runs/NAME/model")
    check_source(source, revision)
    adapter = find_adapter(source, revision)
    if adapter is None and Path(source).is_dir():
        raise MismatchError(f"'{source}' is a whole model, no LoRA adapter: there is nothing to merge, use it as it is")
    if adapter is None:
        raise MismatchError(
            f"there is no folder '{source}' here, and no adapter of that name that this machine can reach"
        )
    return adapter

"""A LoRA adapter and its base model merged into one model without adapters, by PEFT's own merge."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vopd.errors import ConfigurationError, MismatchError, first_line, require
from vopd.folders import check_model_folder

from .adapters import tied_and_trained_apart
from .loading import load_configuration, load_model, load_tokenizer, saved_generation_config

_CONFIG = "adapter_config.json"
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
    peft, unreadable = require("peft", "train"), require("safetensors", "train").SafetensorError
    folder = adapter_folder(source, revision)
    config = peft.PeftConfig.from_pretrained(str(folder))
    base, base_revision = base_model or config.base_model_name_or_path, None if base_model else config.revision
    if not base:
        raise MismatchError(f"the adapter '{source}' names no base model; give it with --base_model")
    try:
        dequantized = hasattr(load_configuration(base, revision=base_revision).config, "quantization_config")
        model = load_model(base, dtype=dtype, revision=base_revision)
    except MismatchError as error:
        raise MismatchError(f"the base model of '{source}': {error}; --base_model names another place") from error
    if dequantized:
        model = model.dequantize()
        model = model if dtype == "auto" else model.to(dtype=getattr(require("torch", "train"), dtype))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")  # random weights would be merged
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")  # checked below
            adapted = peft.PeftModel.from_pretrained(model, str(folder))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, UserWarning, unreadable) as error:
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2])  # a shape that differs is in the second
        raise MismatchError(f"the adapter '{source}' does not fit its base model '{base}' ({reason})") from error
    merged = _merged(adapted, source)
    merged.generation_config = saved_generation_config(folder, merged.generation_config)
    tokenizer_of = (folder, None) if (folder / "tokenizer_config.json").exists() else (base, base_revision)
    tokenizer = load_tokenizer(tokenizer_of[0], revision=tokenizer_of[1])
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


def adapter_folder(source: str, revision: str | None) -> Path:
    """Return the folder of an adapter; that of a hub id is downloaded, without anything that belongs to no adapter.

    Raises:
        MismatchError: there is no such adapter.
    """
    folder = Path(source)
    if folder.is_dir():
        if (folder / _CONFIG).exists():
            return folder
        if (folder / "config.json").exists():
            raise MismatchError(
                f"'{source}' is a whole model, no LoRA adapter: there is nothing to merge, use it as it is"
            )
        raise MismatchError(f"'{source}' has no {_CONFIG}; give the folder of an adapter, such as runs/NAME/model")
    check_model_folder(source)
    hub = require("huggingface_hub", "train")
    try:
        hub.hf_hub_download(source, _CONFIG, revision=revision)
        wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "README.md"]
        return Path(hub.snapshot_download(source, revision=revision, allow_patterns=wanted, ignore_patterns="*/*"))
    except hub.errors.LocalEntryNotFoundError as error:
        raise MismatchError(
            f"there is no folder '{source}' here, and no adapter of that name that this machine has or can reach"
        ) from error
    except hub.errors.EntryNotFoundError as error:
        raise MismatchError(
            f"'{source}' has no {_CONFIG}: it is no LoRA adapter, and there is nothing to merge"
        ) from error
    except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError, OSError) as error:
        raise MismatchError(
            f"there is no folder '{source}' here and no such adapter on the hub ({first_line(error)})"
        ) from error

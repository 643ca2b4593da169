"""Loads causal language models and tokenizers from a local folder or the Hugging Face Hub.

Code in a model's repository (`trust_remote_code`) is never run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vopd.errors import MismatchError, check_known, first_line, require
from vopd.folders import CONFIGURATIONS, check_model_folder, nearest_model

DTYPES = ("auto", "float32", "bfloat16", "float16")
# Quantizations of linear layers, and their bits per weight.
BITS = {"8bit": 8, "4bit": 4}
# Names of tokens that exist in tokenizers for padding and that no text contains.
_PAD_CANDIDATES = ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>", "<|endoftext|>")

_PATIENCE_S = 10


def load_tokenizer(source: str | Path, *, revision: str | None = None) -> Any:
    """Load the tokenizer of a local folder or hub id, with left padding and a padding token.

    If the tokenizer has no padding token, an existing token other than the end token is used; if there is none, the end
    token. Padding must then be recognized by lengths, not by ids, as `sample` does. No token is ever added.

    Args:
        source: a local folder or a hub id.
        revision: branch, tag or commit of a hub id.

    Returns:
        The tokenizer.

    Raises:
        MismatchError: there is no such model, it has no tokenizer, or it requires custom code.
    """
    with _loading("tokenizer", source, revision) as transformers:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source, revision=revision, padding_side="left", trust_remote_code=False
        )
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
        # For a folder without tokenizer files, transformers returns an empty tokenizer.
        raise MismatchError(f"'{source}' has no tokenizer; save the model's tokenizer into the same folder")
    _choose_pad_token(tokenizer, source)
    return tokenizer


def load_model(
    source: str | Path,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    revision: str | None = None,
    quantization: str | None = None,
) -> Any:
    """Load the causal language model of a local folder or hub id, in evaluation mode.

    For a folder with a LoRA adapter (adapter_config.json), this loads the base model and the adapter. A generation
    configuration next to the adapter, with the end tokens of its training, overrides that of the base model.

    Args:
        source: a folder written by `save_pretrained`, or a hub id.
        dtype: auto (the saved dtype), float32, bfloat16 or float16.
        device: device of the weights, such as cpu or cuda.
        revision: branch, tag or commit of a hub id.
        quantization: "8bit" or "4bit" (NF4) quantizes the linear layers except the output head with bitsandbytes; all
            other weights are in `dtype`. None quantizes nothing.

    Returns:
        The model.

    Raises:
        ConfigurationError: the dtype or quantization is unknown.
        MissingExtraError: bitsandbytes is needed but not installed.
        MismatchError: there is no such model, weights are missing, or it requires custom code.
    """
    check_known("dtype", dtype, DTYPES)
    quantized = {} if quantization is None else _quantized(quantization, device)
    with _loading("model", source, revision) as transformers:
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            source, revision=revision, dtype=dtype, trust_remote_code=False, output_loading_info=True, **quantized
        )
    missing = sorted(report["missing_keys"])
    if missing:
        # transformers initializes these randomly and only warns.
        raise MismatchError(f"'{source}' lacks {len(missing)} of the model's weights, starting with {missing[0]}")
    if (Path(source) / "adapter_config.json").exists():
        model.generation_config = saved_generation_config(source, model.generation_config)
    return (model if quantized else model.to(device)).eval()


def best_device(device: str = "auto") -> str:
    """Return `device`; for "auto", the GPU if there is one, else the CPU."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name(device: str | torch.device) -> str:
    """Return the name of a device for messages: "cuda:0 (NVIDIA H100 80GB HBM3)", "cpu"."""
    found = torch.device(device)
    return f"{found} ({torch.cuda.get_device_name(found)})" if found.type == "cuda" else found.type


def _quantized(quantization: str, device: str) -> dict[str, Any]:
    """Return the arguments of from_pretrained for quantized weights, which are loaded directly onto the device."""
    check_known("quantization", quantization, BITS)
    require("bitsandbytes", "quantization")
    chosen: dict[str, Any] = {"load_in_8bit": True}
    if quantization == "4bit":
        half = torch.bfloat16 if torch.device(device).type != "cpu" else torch.float32
        chosen = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        chosen["bnb_4bit_compute_dtype"] = half
    config = require("transformers", "train").BitsAndBytesConfig(**chosen)
    return {"quantization_config": config, "device_map": {"": device}}


@dataclass(frozen=True)
class Configuration:
    """The configuration of a folder or hub id, for a model of any type.

    Attributes:
        config: the model configuration; that of the text model may be a part of it.
        generation_config: the saved generation configuration, or the default made from `config`.
    """

    config: Any
    generation_config: Any


def load_configuration(source: str | Path, *, revision: str | None = None) -> Configuration:
    """Return the configuration of a local folder or hub id.

    For an adapter folder it is that of the base model, with the generation configuration that `load_model` would use.

    Raises:
        MismatchError: there is no such model, or it requires custom code.
    """
    adapter = Path(source) / "adapter_config.json"
    if adapter.exists():
        base = load_configuration(json.loads(adapter.read_text())["base_model_name_or_path"])
        return replace(base, generation_config=saved_generation_config(source, base.generation_config))
    with _loading("model", source, revision) as transformers:
        config = transformers.AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        made = transformers.GenerationConfig.from_model_config(config)
    return Configuration(config, saved_generation_config(source, made, revision))


def saved_generation_config(source: str | Path, otherwise: Any, revision: str | None = None) -> Any:
    """Return the generation configuration of a folder or hub id, or `otherwise` if it has none."""
    with suppress(OSError):
        return require("transformers", "train").GenerationConfig.from_pretrained(source, revision=revision)
    return otherwise


def load_skeleton(source: str | Path, *, revision: str | None = None) -> Any:
    """Return the model of a local folder or hub id without weights: every parameter is on the device "meta".

    It has the sizes, the modules, the end tokens and, as ``config.dtype``, the dtype of the saved weights. For an
    adapter folder it is the base model, with the end tokens that `load_model` would use.

    Raises:
        MismatchError: there is no such model, or it requires custom code.
    """
    found = load_configuration(source, revision=revision)
    config = found.config
    with _loading("model", source, revision) as transformers:
        if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ValueError(f"{config.model_type} is not a causal language model")
        # By the class itself: from_config would shard the weights if a launcher is configured to.
        kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        if kind.config_class is config.sub_configs.get("text_config"):  # the text model of a multimodal one
            config = config.get_text_config()
        with torch.device("meta"):
            model = kind(config)
    model.generation_config = found.generation_config
    return model


@contextmanager
def _loading(what: str, source: str | Path, revision: str | None) -> Iterator[Any]:
    """Yield transformers; raise MismatchError if there is nothing to load or loading fails."""
    if not check_model_folder(source):
        _check_hub(os.fspath(source), revision)
    transformers = require("transformers", "train")
    try:
        yield transformers
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if "trust_remote_code" in str(error):
            raise MismatchError(
                f"'{source}' needs code from its own repository (trust_remote_code), which vopd does not run; "
                "use a model with an architecture that transformers supports"
            ) from error
        reach = "; pass a local folder, or a hub id that this machine can reach"
        where = "" if Path(source).is_dir() else nearest_model(Path(source)) or reach
        raise MismatchError(f"cannot load the {what} of '{source}' ({first_line(error)}){where}") from error


def _check_hub(source: str, revision: str | None) -> None:
    """Raise MismatchError if there is no model of this name, neither in the local cache nor on the hub.

    A download would retry six times, with a warning each. This finds a misspelled folder name with a single request.
    """
    hub = require("huggingface_hub", "train")
    if hub.constants.HF_HUB_OFFLINE:
        return
    try:
        cached = (hub.try_to_load_from_cache(source, name, revision=revision) for name in CONFIGURATIONS)
        if not any(isinstance(path, str) for path in cached):
            hub.HfApi().model_info(source, revision=revision, timeout=_PATIENCE_S)
    except (hub.errors.GatedRepoError, hub.errors.RevisionNotFoundError):
        return  # the error of the download is clear
    except (hub.errors.RepositoryNotFoundError, hub.errors.HFValidationError) as error:
        raise MismatchError(
            f"there is no folder '{source}' here and no such model on the hub{nearest_model(Path(source))}; "
            "if it is private, log in with `hf auth login`"
        ) from error
    except hub.errors.HfHubHTTPError:
        return
    except Exception as error:  # of whichever library makes the request
        raise MismatchError(
            f"there is no folder '{source}' here{nearest_model(Path(source))}, and the hub is unreachable: "
            f"{str(error).strip() or type(error).__name__}"
        ) from error


def _choose_pad_token(tokenizer: Any, source: str | Path) -> None:
    if tokenizer.pad_token is not None:
        return
    vocabulary = tokenizer.get_vocab()
    fitting = (name for name in _PAD_CANDIDATES if name in vocabulary and name != tokenizer.eos_token)
    tokenizer.pad_token = next(fitting, tokenizer.eos_token)
    if tokenizer.pad_token is None:
        raise MismatchError(
            f"the tokenizer of '{source}' has neither a padding token nor an end token; set eos_token in its "
            "tokenizer_config.json"
        )

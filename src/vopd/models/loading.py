"""Load a causal language model and its tokenizer from a local folder or the Hugging Face Hub.

Code that a model's repository brings along (`trust_remote_code`) is never run.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vopd.errors import MismatchError, check_known, first_line, require

DTYPES = ("auto", "float32", "bfloat16", "float16")
# Ways to hold linear layers in few bits, with the bits.
BITS = {"8bit": 8, "4bit": 4}
# Names that tokenizers give to a token that is there for padding and that no text contains.
_PAD_CANDIDATES = ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>", "<|endoftext|>")

_PATIENCE_S = 10
# One of them is in every model's folder.
_CONFIGURATIONS = ("config.json", "adapter_config.json")


def load_tokenizer(source: str | Path, *, revision: str | None = None) -> Any:
    """Load the tokenizer of a local folder or hub id, padding on the left, with a padding token.

    Where the tokenizer names no padding token, an existing one that differs from the end token is taken. If
    there
    is none it is the end token: padding must then be told from the text by lengths, never by ids, as `sample`
    does. The vocabulary never grows.

    Raises:
        MismatchError: there is no such model, it has no tokenizer, or it needs code of its own.
    """
    with _loading("tokenizer", source, revision) as transformers:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source, revision=revision, padding_side="left", trust_remote_code=False
        )
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
        # From a folder without tokenizer files transformers makes a tokenizer with nothing in it.
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

    A folder with a LoRA adapter (adapter_config.json) loads its base model and puts the adapter on top; a generation
    configuration next to the adapter, with the end tokens that it was trained with, wins over the base model's.

    Args:
        source: a folder made by `save_pretrained`, or a hub id.
        dtype: auto (as saved), float32, bfloat16 or float16.
        device: where the weights go, such as cpu or cuda.
        revision: branch, tag or commit of a hub id.
        quantization: hold the linear layers, but for the output head, in "8bit" or "4bit" (NF4) with bitsandbytes; the
            rest is in `dtype`. None holds all of it in `dtype`.

    Raises:
        ConfigurationError: unknown dtype or quantization.
        MissingExtraError: bitsandbytes is needed and not installed.
        MismatchError: there is no such model, weights are missing, or it needs code of its own.
    """
    check_known("dtype", dtype, DTYPES)
    quantized = {} if quantization is None else _quantized(quantization, device)
    with _loading("model", source, revision) as transformers:
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            source, revision=revision, dtype=dtype, trust_remote_code=False, output_loading_info=True, **quantized
        )
    missing = sorted(report["missing_keys"])
    if missing:
        # transformers fills these with random numbers and only warns.
        raise MismatchError(f"'{source}' lacks {len(missing)} of the model's weights, the first is {missing[0]}")
    if (Path(source) / "adapter_config.json").exists():
        model.generation_config = _generation_config(source, model.generation_config)
    return (model if quantized else model.to(device)).eval()


def best_device(device: str = "auto") -> str:
    """Return `device`, or for auto the GPU where there is one, and the CPU otherwise."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name(device: str | torch.device) -> str:
    """Return what a reader knows a device by: "cuda:0 (NVIDIA H100 80GB HBM3)", "cpu"."""
    found = torch.device(device)
    return f"{found} ({torch.cuda.get_device_name(found)})" if found.type == "cuda" else found.type


def _quantized(quantization: str, device: str) -> dict[str, Any]:
    """Arguments of from_pretrained for weights in few bits, which are placed while they are loaded."""
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
    """What a folder or hub id says of its model, which may be of any kind.

    Attributes:
        config: its configuration, of which the text model may be a part.
        generation_config: the one beside it; what can be made of the configuration where there is none.
    """

    config: Any
    generation_config: Any


def load_configuration(source: str | Path, *, revision: str | None = None) -> Configuration:
    """Return the configuration of a local folder or hub id.

    Of an adapter's folder it is the base model's, with the generation configuration that ``load_model`` would give it.

    Raises:
        MismatchError: there is no such model, or it needs code of its own.
    """
    adapter = Path(source) / "adapter_config.json"
    if adapter.exists():
        base = load_configuration(json.loads(adapter.read_text())["base_model_name_or_path"])
        return replace(base, generation_config=_generation_config(source, base.generation_config))
    with _loading("model", source, revision) as transformers:
        config = transformers.AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        made = transformers.GenerationConfig.from_model_config(config)
    return Configuration(config, _generation_config(source, made, revision))


def _generation_config(source: str | Path, otherwise: Any, revision: str | None = None) -> Any:
    """That of a folder or hub id, which need not have one."""
    with suppress(OSError):
        return require("transformers", "train").GenerationConfig.from_pretrained(source, revision=revision)
    return otherwise


def load_skeleton(source: str | Path, *, revision: str | None = None) -> Any:
    """Return the model of a local folder or hub id without its weights: every parameter is on the device "meta".

    It tells the sizes, the modules, the end tokens and, as ``config.dtype``, the dtype of the saved weights. Of an
    adapter's folder it is the base model, with the end tokens that ``load_model`` would give it.

    Raises:
        MismatchError: there is no such model, or it needs code of its own.
    """
    found = load_configuration(source, revision=revision)
    config = found.config
    with _loading("model", source, revision) as transformers:
        if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ValueError(f"{config.model_type} is no causal language model")
        # By the class itself: from_config would cut weights up where a launcher has asked for that.
        kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        if kind.config_class is config.sub_configs.get("text_config"):  # the text model of several
            config = config.get_text_config()
        with torch.device("meta"):
            model = kind(config)
    model.generation_config = found.generation_config
    return model


@contextmanager
def _loading(what: str, source: str | Path, revision: str | None) -> Iterator[Any]:
    """Give the library that loads; raises MismatchError where there is nothing to load, or that fails."""
    _check_source(source, revision)
    transformers = require("transformers", "train")
    try:
        yield transformers
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if "trust_remote_code" in str(error):
            raise MismatchError(
                f"'{source}' needs code from its own repository (trust_remote_code), which vopd does not run; "
                "use a model whose architecture transformers itself supports"
            ) from error
        reach = "; give a local folder, or a hub id that this machine can reach"
        where = "" if Path(source).is_dir() else _nearest(Path(source)) or reach
        raise MismatchError(f"cannot load the {what} of '{source}' ({first_line(error)}){where}") from error


def _check_source(source: str | Path, revision: str | None) -> None:
    path = Path(source)
    if not path.is_dir():
        text = os.fspath(source)
        if path.is_absolute() or text.startswith(("./", "../", "~")) or text.count("/") > 1 or not text:
            raise MismatchError(f"there is no model folder '{source}'{_nearest(path)}")
        _check_hub(text, revision)
        return
    if not any((path / name).exists() for name in _CONFIGURATIONS):
        raise MismatchError(
            f"'{source}' has no config.json; give the folder that save_pretrained wrote "
            "(for a training run, one of its checkpoints or its model folder)"
        )


def _check_hub(source: str, revision: str | None) -> None:
    """Raises MismatchError where neither this machine nor the hub has a model of that name.

    A download would try six times before it gave up, with a warning each: a name that is no hub id but a folder's with
    a letter wrong is found out here by one question.
    """
    hub = require("huggingface_hub", "train")
    if hub.constants.HF_HUB_OFFLINE:
        return
    try:
        cached = (hub.try_to_load_from_cache(source, name, revision=revision) for name in _CONFIGURATIONS)
        if not any(isinstance(path, str) for path in cached):
            hub.HfApi().model_info(source, revision=revision, timeout=_PATIENCE_S)
    except (hub.errors.GatedRepoError, hub.errors.RevisionNotFoundError):
        return  # what a download says of them is clear
    except (hub.errors.RepositoryNotFoundError, hub.errors.HFValidationError) as error:
        raise MismatchError(
            f"there is no folder '{source}' here and no such model on the hub{_nearest(Path(source))}; "
            "for a private one log in with `hf auth login`"
        ) from error
    except hub.errors.HfHubHTTPError:
        return
    except Exception as error:  # of whichever library speaks to the network
        raise MismatchError(
            f"there is no folder '{source}' here{_nearest(Path(source))}; and the hub cannot be asked for a model of "
            f"that name: {str(error).strip() or type(error).__name__}"
        ) from error


def _nearest(path: Path) -> str:
    """A hint at the model folder beside it whose name is nearly the same, where there is one."""
    parent = path.expanduser().parent
    names = [entry.name for entry in parent.iterdir() if (entry / "config.json").exists()] if parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean '{path.parent / close[0]}'?" if close else ""


def _choose_pad_token(tokenizer: Any, source: str | Path) -> None:
    if tokenizer.pad_token is not None:
        return
    vocabulary = tokenizer.get_vocab()
    fitting = (name for name in _PAD_CANDIDATES if name in vocabulary and name != tokenizer.eos_token)
    tokenizer.pad_token = next(fitting, tokenizer.eos_token)
    if tokenizer.pad_token is None:
        raise MismatchError(
            f"the tokenizer of '{source}' has neither a padding nor an end token; set eos_token in its "
            "tokenizer_config.json"
        )

"""Loads causal language models and tokenizers from a local folder or the Hugging Face Hub.

Code in a model's repository (`trust_remote_code`) is never run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vopd.errors import MismatchError, VOPDError, check_known, counted, first_line, require
from vopd.folders import nearest_model
from vopd.hub import hub_refusal

from .files.adapter_folders import Adapter, attach, find_adapter
from .files.model_files import damage, damaged_weights
from .files.model_paths import check_source, has_file

logger = logging.getLogger("vopd")

DTYPES = ("auto", "float32", "bfloat16", "float16")
# Quantizations of linear layers, and their bits per weight.
BITS = {"8bit": 8, "4bit": 4}
# Names of tokens that exist in tokenizers for padding and that no text contains.
_PAD_CANDIDATES = ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>", "<|endoftext|>")

# Ends of the names of classes that transformers saves for other tasks than the next token.
_OTHER_TASKS = ("ForMaskedLM", "ForPreTraining", "Classification", "ForQuestionAnswering", "ForMultipleChoice")


# Families, such as Pythia's, whose models are decoders although their configuration has the default of an encoder.
_ALWAYS_DECODERS = ("gpt_neox",)


def load_tokenizer(source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a local folder or hub id, with left padding and a padding token.

    An adapter that was saved without one has that of its base model.

    If the tokenizer has no padding token, an existing token other than the end token is used; if there is none, the end
    token. Padding must then be recognized by lengths, not by ids, as `sample` does. No token is ever added.

    Args:
        source: a local folder or a hub id.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: whether code from the repository may run; the commands never allow it.

    Returns:
        The tokenizer.

    Raises:
        MismatchError: there is no such model, it has no tokenizer, or it requires custom code.
    """
    check_source(source, revision)
    adapter = find_adapter(source, revision)
    if adapter is not None and not has_file(source, "tokenizer_config.json", revision):
        with _naming(adapter):
            return load_tokenizer(adapter.base, revision=adapter.base_revision)
    with _loading("tokenizer", source, revision) as transformers:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source, revision=revision, padding_side="left", trust_remote_code=trust_remote_code
        )
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
        # For a folder without tokenizer files, transformers returns an empty tokenizer.
        raise MismatchError(f"'{source}' has no tokenizer; save the model's tokenizer into the same folder")
    _choose_pad_token(tokenizer, source)
    return tokenizer


def load_model(
    source: str | Path,
    *,
    dtype: Any = "auto",
    device: str = "cpu",
    revision: str | None = None,
    quantization: str | None = None,
    trainable: bool = False,
    **more: Any,
) -> Any:
    """Load the causal language model of a local folder or hub id, in evaluation mode.

    For an adapter (adapter_config.json), this loads the base model and the adapter, as a PEFT model. A generation
    configuration next to the adapter, with the end tokens of its training, overrides that of the base model.

    Args:
        source: a folder written by `save_pretrained`, or a hub id.
        dtype: auto (the saved dtype), float32, bfloat16 or float16, or a dtype of torch.
        device: device of the weights, such as cpu or cuda.
        revision: branch, tag or commit of a hub id.
        quantization: "8bit" or "4bit" (NF4) quantizes the linear layers except the output head with bitsandbytes; all
            other weights are in `dtype`. None quantizes nothing.
        trainable: whether the weights of an adapter require gradient; those of its base never do.
        more: further arguments of ``from_pretrained``; a device_map decides the device.

    Returns:
        The model.

    Raises:
        ConfigurationError: the dtype or quantization is unknown.
        MissingExtraError: bitsandbytes is needed but not installed.
        MismatchError: there is no such model, its files are damaged, weights are missing or belong to another model, or
            it requires custom code.
    """
    if not isinstance(dtype, torch.dtype):
        check_known("dtype", dtype, DTYPES)
    if quantization is not None:
        more = {**more, **_quantized(quantization, device)}
    check_source(source, revision)
    adapter = find_adapter(source, revision)
    if adapter is not None:
        with _naming(adapter):
            base = _load_whole(adapter.base, dtype, device, adapter.base_revision, more)
        base.generation_config = saved_generation_config(source, base.generation_config, revision)
        return attach(base, adapter, trainable=trainable)
    return _load_whole(source, dtype, device, revision, more)


def _load_whole(source: str | Path, dtype: Any, device: str, revision: str | None, more: dict[str, Any]) -> Any:
    """Load a model that is no adapter."""
    options = {"trust_remote_code": False, **more, "revision": revision, "dtype": dtype}
    with _loading("model", source, revision) as transformers:
        _check_class(transformers, source, revision, bool(options["trust_remote_code"]))
        # Shapes that differ are refused below, by their names.
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        with _without_report():
            model, report = transformers.AutoModelForCausalLM.from_pretrained(source, **options)
    _check_report(source, report)
    placed = "device_map" in more or getattr(model, "quantization_method", None) is not None
    return (model if placed else model.to(device)).eval()


def _check_report(source: str | Path, report: Mapping[str, Any]) -> None:
    """Raises MismatchError if weights were not loaded: transformers makes them random and only warns."""
    for name, saved, expected in sorted(report.get("mismatched_keys", ())):
        raise MismatchError(
            f"'{source}' has weights of another shape than its config.json says: {name} is {tuple(saved)}, not "
            f"{tuple(expected)}; put the config.json of these weights there"
        )
    missing, unused = sorted(report["missing_keys"]), sorted(report.get("unexpected_keys", ()))
    if missing:
        other = f", and has {len(unused)} that it does not know, starting with {unused[0]}" if unused else ""
        raise MismatchError(
            f"'{source}' lacks {len(missing)} of the model's weights, starting with {missing[0]}{other}; take the "
            "whole checkpoint of a causal language model, with the config.json of its weights"
        )
    if unused:
        what = counted(len(unused), "weight")
        logger.warning("'%s' has %s that its model does not use, starting with %s", source, what, unused[0])


@contextmanager
def _without_report() -> Iterator[None]:
    """Context without the table of transformers about the weights of a checkpoint."""

    def other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    speaker = logging.getLogger("transformers.modeling_utils")
    speaker.addFilter(other)
    try:
        yield
    finally:
        speaker.removeFilter(other)


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

    For an adapter it is that of the base model, with the generation configuration that `load_model` would use.

    Raises:
        MismatchError: there is no such model, or it requires custom code.
    """
    check_source(source, revision)
    adapter = find_adapter(source, revision)
    if adapter is not None:
        with _naming(adapter):
            base = load_configuration(adapter.base, revision=adapter.base_revision)
        return replace(base, generation_config=saved_generation_config(source, base.generation_config, revision))
    with _loading("model", source, revision) as transformers:
        config = transformers.AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        made = transformers.GenerationConfig.from_model_config(config)
    return Configuration(config, saved_generation_config(source, made, revision))


def saved_generation_config(source: str | Path, otherwise: Any, revision: str | None = None) -> Any:
    """Return the generation configuration of a folder or hub id, or `otherwise` if it has none.

    Raises:
        MismatchError: it has one that cannot be read; its end tokens would be lost.
    """
    try:
        return require("transformers", "train").GenerationConfig.from_pretrained(source, revision=revision)
    except OSError as error:
        if (Path(source) / "generation_config.json").exists():
            raise MismatchError(f"'{source}': {damage(source) or first_line(error)}") from error
    return otherwise


def load_skeleton(source: str | Path, *, revision: str | None = None, trainable: bool = False) -> Any:
    """Return the model of a local folder or hub id without weights: every parameter is on the device "meta".

    It has the sizes, the modules, the end tokens and, as ``config.dtype``, the dtype of the saved weights. An adapter
    is on it as `load_model` would put it there; its own weights are read, which finds those of another model.

    Raises:
        MismatchError: there is no such model, its files are damaged or do not fit, or it requires custom code.
    """
    check_source(source, revision)
    adapter = find_adapter(source, revision)
    if adapter is None:
        return _whole_skeleton(source, revision)
    with _naming(adapter):
        base = _whole_skeleton(adapter.base, adapter.base_revision)
    base.generation_config = saved_generation_config(source, base.generation_config, revision)
    return attach(base, adapter, trainable=trainable)  # PEFT puts it onto the device of the base


def _whole_skeleton(source: str | Path, revision: str | None) -> Any:
    found = load_configuration(source, revision=revision)
    config = found.config
    with _loading("model", source, revision) as transformers:
        _check_class(transformers, source, revision)
        # By the class itself: from_config would shard the weights if a launcher is configured to.
        kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        if kind.config_class is config.sub_configs.get("text_config"):  # the text model of a multimodal one
            config = config.get_text_config()
        with torch.device("meta"):
            model = kind(config)
    model.generation_config = found.generation_config
    return model


def check_weights(source: str | Path, revision: str | None = None) -> None:
    """Look at the files of weights without reading them, those of an adapter's base too.

    Raises:
        MismatchError: in a local folder, one is missing, cut off, or not what its name says.
    """
    check_source(source, revision)
    adapter = find_adapter(source, revision)
    if adapter is not None:
        with _naming(adapter):
            check_weights(adapter.base, adapter.base_revision)
    if Path(source).is_dir() and (problem := damaged_weights(source)) is not None:
        raise MismatchError(f"cannot load the model of '{source}': {problem}")


def _check_class(transformers: Any, source: str | Path, revision: str | None, trust: bool = False) -> None:
    """Raises MismatchError if a model does not predict each token from those before it."""
    config = transformers.AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust)
    saved = (getattr(config, "architectures", None) or [config.model_type])[0]
    kind = None
    if getattr(config, "is_encoder_decoder", False):
        kind = "a sequence-to-sequence model"
    elif saved.endswith(_OTHER_TASKS) or (
        getattr(config, "is_decoder", True) is False and not config.model_type.startswith(_ALWAYS_DECODERS)
    ):
        kind = "an encoder, or a model for another task"
    elif type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING and not (trust and hasattr(config, "auto_map")):
        kind = "not a causal language model that transformers has"
    if kind is not None:
        raise MismatchError(f"'{source}' is {kind} ({saved}); use a causal language model")


@contextmanager
def _naming(adapter: Adapter) -> Iterator[None]:
    """Errors about the base model name the adapter too."""
    base = adapter.base
    try:
        yield
    except MismatchError as error:
        of = f"the base model '{base}' of the adapter '{adapter.source}'"
        here = "" if os.path.isabs(base) else f" (in {Path.cwd()})"
        fix = "" if Path(base).is_dir() else f"{here}; {adapter.fix}"
        raise MismatchError(f"{of}: {error}{fix}") from error


@contextmanager
def _loading(what: str, source: str | Path, revision: str | None) -> Iterator[Any]:
    """Yield transformers; raise MismatchError if there is nothing to load or loading fails."""
    check_source(source, revision)
    transformers = require("transformers", "train")
    try:
        yield transformers
    except VOPDError:
        raise
    except Exception as error:  # a damaged file can raise any, of half a dozen libraries
        if "trust_remote_code" in str(error):
            raise MismatchError(
                f"'{source}' needs code from its own repository (trust_remote_code), which vopd does not run; "
                "use a model with an architecture that transformers supports"
            ) from error
        if Path(source).is_dir():
            fix = "download it again, or install the version of transformers that saved it"
            if isinstance(error, ImportError):  # of a quantization
                fix = "install what it needs, or name the model that was quantized"
            otherwise = f"{_reason(error)}; {fix}"
            raise MismatchError(f"cannot load the {what} of '{source}': {damage(source) or otherwise}") from error
        where = nearest_model(Path(source)) or "; pass a local folder, or a hub id that this machine can reach"
        raise MismatchError(f"cannot load the {what} of '{source}' ({hub_refusal(error)}){where}") from error


def _reason(error: Exception) -> str:
    """The first two lines of an error: the second one often says what the first one announces."""
    return " ".join(line.strip() for line in (str(error) or type(error).__name__).splitlines()[:2]).rstrip(". ")


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

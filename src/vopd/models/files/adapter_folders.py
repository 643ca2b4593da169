"""Adapters as PEFT saves them: found by their adapter_config.json, and put onto the base model that it names."""

from __future__ import annotations

import json
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vopd.errors import MismatchError, require
from vopd.hub import hub_refusal

from .model_files import damage, has_weights

CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PARTS = ["*.json", "*.safetensors", "*.bin", "*.jinja", "*.model", "*.txt", "README.md"]


@dataclass(frozen=True)
class Adapter:
    """An adapter in a folder or on the hub.

    Attributes:
        source: the folder or hub id, as it was given.
        revision: branch, tag or commit of a hub id.
        config: the content of adapter_config.json.
    """

    source: str
    revision: str | None
    config: dict[str, Any]

    @property
    def base(self) -> str:
        """The folder or hub id of the base model.

        Raises:
            MismatchError: the adapter names none, or another adapter.
        """
        base = self.config.get("base_model_name_or_path")
        if not base:
            raise MismatchError(f"the adapter '{self.source}' names no base model; {self.fix}")
        if (Path(base) / CONFIG).is_file() and not has_weights(Path(base)):
            raise MismatchError(
                f"the base model '{base}' of the adapter '{self.source}' is an adapter itself; merge that one with "
                f"vopd merge, then {self.fix}"
            )
        return str(base)

    @property
    def fix(self) -> str:
        """How to name another base."""
        return f"write the full path or hub id of its base as base_model_name_or_path in {Path(self.source) / CONFIG}"

    @property
    def base_revision(self) -> str | None:
        """Branch, tag or commit of the base model."""
        return self.config.get("revision")

    @property
    def kind(self) -> str:
        """PEFT's name of the method: LORA, IA3 and so on."""
        return str(self.config.get("peft_type"))

    def folder(self) -> Path:
        """The folder with all its files; that of a hub id is downloaded, without anything that belongs to no adapter.

        Raises:
            MismatchError: the hub cannot be reached.
        """
        if Path(self.source).is_dir():
            return Path(self.source)
        hub = require("huggingface_hub", "train")
        try:
            return Path(
                hub.snapshot_download(self.source, revision=self.revision, allow_patterns=_PARTS, ignore_patterns="*/*")
            )
        except Exception as error:  # of whichever library makes the request
            raise MismatchError(f"the adapter '{self.source}' cannot be downloaded ({hub_refusal(error)})") from error


def find_adapter(source: str | Path, revision: str | None = None) -> Adapter | None:
    """Return the adapter in a folder or hub id; None if it is a whole model, or nothing.

    Raises:
        MismatchError: adapter_config.json cannot be read, or lies beside the weights of a whole model.
    """
    found = None
    with suppress(OSError, ValueError):  # no such folder and no such name on the hub
        found = require("transformers.utils", "train").find_adapter_config_file(str(source), revision=revision)
    if found is None:
        return None
    if Path(source).is_dir() and has_weights(Path(source)):
        raise MismatchError(
            f"'{source}' has both an adapter ({CONFIG}) and the weights of a whole model; move one of them into "
            "a folder of its own"
        )
    try:
        config = json.loads(Path(found).read_text(encoding="utf-8"))
    except ValueError as error:
        raise MismatchError(f"{found} is not a valid JSON file ({error}); copy or download it again") from error
    if not isinstance(config, dict):
        raise MismatchError(f"{found} is not the configuration of an adapter; copy or download it again")
    return Adapter(str(source), revision, config)


def attach(base: Any, adapter: Adapter, *, trainable: bool = False) -> Any:
    """Put an adapter onto its base model, which is changed; its name_or_path is then the adapter's source.

    Args:
        base: the base model, with weights or without (on the device "meta").
        adapter: what `find_adapter` found.
        trainable: whether the adapter's weights require gradient; those of the base never do.

    Raises:
        MismatchError: weights are damaged or missing, or belong to another model or task.
    """
    peft, folder = require("peft", "train"), adapter.folder()
    problem = damage(folder)
    if problem is not None:
        raise MismatchError(f"cannot load the adapter '{adapter.source}': {problem}")
    if (task := adapter.config.get("task_type")) not in (None, "CAUSAL_LM"):
        raise MismatchError(f"the adapter '{adapter.source}' is for the task {task}; use one for CAUSAL_LM")
    _check_rows(base, folder, adapter)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Prompt learning cannot be loaded for training: `check_adapters` refuses such a student with the reason.
            trained = trainable and not peft.PeftConfig.from_pretrained(str(folder)).is_prompt_learning
            warnings.filterwarnings("error", message="Found missing adapter keys")  # they would be random numbers
            adapted = peft.PeftModel.from_pretrained(base, str(folder), is_trainable=trained, torch_device="cpu")
    except Exception as error:  # of PEFT, torch and safetensors, which have no common one
        # A shape that differs is named in the second line.
        reason = " ".join(line.strip() for line in (str(error) or type(error).__name__).splitlines()[:2])
        named = getattr(base, "name_or_path", "") or adapter.base
        raise MismatchError(
            f"the adapter '{adapter.source}' of kind {adapter.kind} does not fit its base model '{named}' ({reason}); "
            "name the base that it was trained on, and install the version of PEFT that saved it"
        ) from error
    _check_used(adapted, folder, adapter)
    adapted.name_or_path = adapter.source
    return adapted.train(base.training)


def _check_rows(base: Any, folder: Path, adapter: Adapter) -> None:
    """Raises MismatchError if the adapter has embeddings of another size: its base was resized when it was trained."""
    path, embedding = folder / _WEIGHTS, base.get_input_embeddings()
    if not path.exists():
        return
    inside = f"base_model.model.{next(name for name, module in base.named_modules() if module is embedding)}."
    own = base.config.get_text_config().vocab_size  # the weight itself may be divided among processes
    with require("safetensors", "train").safe_open(path, framework="pt") as file:
        saved = [name for name in file.keys() if name.startswith(inside) and name.endswith("weight")]  # noqa: SIM118
        rows = {file.get_slice(name).get_shape()[0] for name in saved}
    if rows - {own}:
        size = max(rows)
        raise MismatchError(
            f"the adapter '{adapter.source}' was trained on a base with {size} embedding rows, but '{adapter.base}' "
            f"has {own}: resize that one (resize_token_embeddings({size})), save it with the adapter's tokenizer, and "
            f"{adapter.fix}"
        )


def _check_used(adapted: Any, folder: Path, adapter: Adapter) -> None:
    """Raises MismatchError if the file has adapter weights that the model has no place for: PEFT drops them."""
    peft, path = require("peft", "train"), folder / _WEIGHTS
    prefix = require("peft.mapping", "train").PEFT_TYPE_TO_PREFIX_MAPPING.get(adapter.kind)
    if prefix is None or not path.exists():
        return
    with require("safetensors", "train").safe_open(path, framework="pt") as file:
        saved = {name for name in file.keys() if prefix in name}  # noqa: SIM118
    unused = saved - peft.get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
    if unused and unused != saved:  # all of them: the architecture has other names by now, which PEFT translates
        raise MismatchError(
            f"the adapter '{adapter.source}' has {len(unused)} weights that its base model has no layer for, starting "
            f"with {min(unused)}; name the base that it was trained on"
        )


def name_bases_absolutely(model: Any) -> None:
    """Let the adapters of a model, if it has any, be saved with a base that can be loaded from every directory."""
    for config in getattr(model, "peft_config", {}).values():
        if config.base_model_name_or_path and Path(config.base_model_name_or_path).is_dir():
            config.base_model_name_or_path = str(Path(config.base_model_name_or_path).absolute())

"""Short digests of what settings name: the prompts, and the weights of a model."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vopd.data.files import digest as digest_of
from vopd.data.files import exists, named_files
from vopd.data.tokenized import without_ids
from vopd.errors import counted
from vopd.teachers.build import Served

_CHUNKS, _CHUNK = 64, 4096
_VALUES = 16


@dataclass(frozen=True)
class Given:
    """What a trainer was given, before training changes it: the contents of its models, and its adapter and
    its reward functions."""

    model: dict[str, Any]
    teachers: dict[str, dict[str, Any]]
    adapter: Any
    rewards: Sequence[Any]

    @classmethod
    def of(cls, model: Any, teachers: Mapping[str, Any], peft_config: Any, rewards: Sequence[Any]) -> Given:
        """Of the arguments of ``VOPDTrainer``; `teachers` come from ``vopd.teachers.build.sources``."""
        adapter = copy.copy(peft_config or getattr(model, "peft_config", {}).get("default"))
        contents = {name: contents_of_model(teacher) for name, teacher in teachers.items()}
        return cls(contents_of_model(model), contents, adapter, rewards)


def contents_of_rows(dataset: Any, sources: str = "", recipe: Any = None, *, dated: bool = False) -> dict[str, Any]:
    """The number of rows, and a digest of all columns: prompts, token ids, reference answers.

    Args:
        dataset: the rows.
        sources: their names, for messages.
        recipe: hashed in place of rows that are not the same whenever they are made.
        dated: the chat template writes the date, so that the token ids are left out.
    """
    digest, hashed = hashlib.sha256(), without_ids(dataset) if dated else dataset
    for rows in [recipe] if recipe is not None else hashed.with_format(None).iter(1000):
        digest.update(json.dumps(rows, sort_keys=True, default=str).encode())
    name = f"{sources or 'train_dataset'}, {counted(len(dataset), 'prompt')}"
    return {"name": name, "content": _short(digest)}


def contents_of_file(source: str) -> dict[str, Any]:
    """The path of local data with the digest of all its files; of another source of data the name alone."""
    return {"name": source, "content": digest_of(named_files(source)) if exists(source) else None}


def contents_of_model(source: Any, commit: str | None = None) -> dict[str, Any]:
    """Path or hub id of a model, and what its weights are: a digest of a sample of them, or the commit on the hub.

    Args:
        source: a path, a model, "self:...", or a teacher behind a server, which is known by its path alone.
        commit: of a hub id, if it is known.
    """
    if isinstance(source, Served):
        return contents_of_model(source.path, commit) if source.path else {"name": "a server"}
    if isinstance(source, str | Path):
        return {"name": str(source), "content": _of_files(Path(source)) or commit}
    config = getattr(source, "config", None)
    name, commit = str(getattr(config, "name_or_path", "")), getattr(config, "_commit_hash", None)
    return {"name": name or type(source).__name__, "content": _of_files(Path(name)) or commit or _of_weights(source)}


def _of_files(folder: Path) -> str | None:
    """Of the sizes of weight files, and of chunks spread over each: a merged adapter differs from its base only in some
    weights."""
    if not folder.name or not folder.is_dir():
        return None
    files = sorted(path for kind in ("*.safetensors", "*.bin") for path in folder.glob(kind))
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(str(size).encode())
        with path.open("rb") as file:
            for start in range(0, size, max(_CHUNK, size // _CHUNKS)):
                file.seek(start)
                digest.update(file.read(_CHUNK))
    return _short(digest) if files else None


def _of_weights(model: Any) -> str:
    """Of a model that has no files: of some values of every weight; those divided among processes have none here."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters() if isinstance(model, nn.Module) else ():
        if type(weight.data) is torch.Tensor and weight.numel():
            values = weight.detach().flatten()[:: max(1, weight.numel() // _VALUES)]
            digest.update(f"{name} {values.float().tolist()}".encode())
    return _short(digest)


def _short(digest: Any) -> str:
    return f"sha256 {digest.hexdigest()[:12]}"

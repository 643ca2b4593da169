"""Computes a text's log-probabilities with a model of any size: each layer is read from its file when it is needed."""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vopd.errors import MismatchError, VOPDError, first_line, require

from .files.adapter_folders import find_adapter
from .files.weight_files import WeightFiles, find_weights
from .footprint import bytes_per_weight
from .loading import load_model, load_skeleton

# What is said about weights that stay on the disk, or that the model does not use.
_SPEAKERS = ("accelerate.big_modeling", "transformers.modeling_utils", "vopd")


class NotComparable(MismatchError):
    """A model cannot be run from its files here; the message can stand after "because"."""


def logprobs_from_files(source: str | Path, ids: Sequence[int], start: int, revision: str | None = None) -> Tensor:
    """Return log q of ``ids[start:]``, each given all ids before it, on the CPU, with about one layer in memory.

    Nothing is downloaded but a configuration. Weights of experts that are saved one by one are written to a temporary
    folder first, as the model has those of a layer in one tensor.

    Args:
        source: a local folder, or a hub id whose files are all in the local cache.
        ids: a text.
        start: the first id whose logarithm is wanted, at least 1.
        revision: branch, tag or commit of a hub id.

    Returns:
        (len(ids) - start,), in float32; the model itself runs in the dtype of its files.

    Raises:
        NotComparable: not all files of the model are on this machine or are whole, or it is quantized, or an adapter.
    """
    try:
        return _logprobs(source, ids, start, revision)
    except MismatchError as error:
        raise NotComparable(str(error)) from error


def _logprobs(source: str | Path, ids: Sequence[int], start: int, revision: str | None) -> Tensor:
    if find_adapter(source, revision) is not None:
        raise MismatchError(f"'{source}' is an adapter; merge it with vopd merge, and serve and name the result")
    saved = find_weights(source, revision, here=True)
    for file in sorted(set(saved.files.values())):
        saved.path(file)
    skeleton = load_skeleton(source, revision=revision)
    if getattr(skeleton.config, "quantization_config", None) is not None:
        raise MismatchError(f"'{source}' is quantized, and its layers cannot be read one by one on the host")
    with tempfile.TemporaryDirectory(prefix="vopd-") as folder:
        _check_room(skeleton, saved, folder)
        return _computed(source, revision, torch.tensor(ids), start, folder)


@torch.no_grad()
def _computed(source: str | Path, revision: str | None, ids: Tensor, start: int, folder: str) -> Tensor:
    try:
        with _quietly():
            model = load_model(source, revision=revision, device_map={"": "disk"}, offload_folder=folder)
            logits: Tensor = model(input_ids=ids[None], use_cache=False).logits[0, start - 1 : -1]
        return logits.float().log_softmax(-1).gather(-1, ids[start:, None]).squeeze(-1)
    except VOPDError:
        raise
    except Exception as error:  # of accelerate or of the model's own code
        why = f"{type(error).__name__}: {first_line(error)}"
        raise MismatchError(f"the layers of '{source}' cannot be read one by one ({why})") from error


def _check_room(skeleton: Any, saved: WeightFiles, folder: str) -> None:
    """Raises MismatchError if weights that are saved in another form, as experts are, would fill the temporary folder.

    It may be in memory, so half of what is free has to stay.
    """

    def within_layer(name: str) -> str | None:
        parts = name.split(".")
        numbers = [i for i, part in enumerate(parts) if part.isdigit()]
        return ".".join(parts[numbers[-1] :]) if numbers else None

    same = {within_layer(name) for name in saved.files} | {None}  # what is in no layer is renamed at most
    other = [weight for name, weight in skeleton.named_parameters() if within_layer(name) not in same]
    needed = sum(weight.numel() for weight in other) * bytes_per_weight(skeleton, "auto")
    free = shutil.disk_usage(folder).free
    if needed > free / 2:
        raise MismatchError(
            f"{needed / 1e9:,.1f} GB of the weights of '{saved.source}' are rearranged in a temporary folder, and "
            f"{tempfile.gettempdir()} has {free / 1e9:,.1f} GB free; set TMPDIR to a folder with twice the room"
        )


@contextmanager
def _quietly() -> Iterator[None]:
    """Context without progress bars and warnings of loading."""

    def silent(record: logging.LogRecord) -> bool:
        return False

    def without_bar(make: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return make(*given, **{**named, "disable": True})

    told = require("transformers.utils", "train").logging
    hook = told.set_tqdm_hook(without_bar)
    speakers = [logging.getLogger(name) for name in _SPEAKERS]
    for speaker in speakers:
        speaker.addFilter(silent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        told.set_tqdm_hook(hook)
        for speaker in speakers:
            speaker.removeFilter(silent)

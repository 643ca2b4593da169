"""Loads the output head of a causal language model alone, from the files of the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vopd.errors import MismatchError
from vopd.kernels import Head

from .files.adapter_folders import Adapter, find_adapter
from .files.model_paths import check_source
from .files.weight_files import WeightFiles, find_weights
from .loading import load_skeleton
from .output_head import read_head

_FLOATING = ("F32", "BF16", "F16")
# As which GPT-NeoX saves the head; transformers renames it.
_RENAMED = "embed_out.weight"


def load_head(source: str | Path, revision: str | None = None) -> Head:
    """Load the output head of a local folder or hub id, but not its model.

    Only the files that hold the head are opened; of a hub id only these and the index are downloaded. For an adapter
    that leaves the head unchanged, it is that of the base model.

    Where a head may be tied to the embedding, the weight is the head's own if one is saved, as in transformers: one
    that differs from the embedding is not tied to it.

    Args:
        source: a folder written by `save_pretrained`, or a hub id.
        revision: branch, tag or commit of a hub id.

    Returns:
        Weight (V, H) and bias (V,), on the CPU, in the dtype in which the weight is saved, frozen; with the scale and
        the soft cap of the configuration.

    Raises:
        MismatchError: there is no such model, its files are damaged or are no safetensors files, they lack the head, or
            it is quantized, or changed by an adapter.
    """
    head, saved, names = _located(*_holder(source, revision))
    weight, *bias = map(saved.read, names)
    return replace(head, weight=weight, bias=bias[0].to(weight.dtype) if bias else None)


def check_head(source: str | Path, revision: str | None = None) -> None:
    """Look for the output head in the files of a local folder without reading it; a hub id's are not looked at.

    Raises:
        MismatchError: `load_head` would raise it.
    """
    holder = _holder(source, revision)
    if Path(holder[0]).is_dir():
        _located(*holder)


def _holder(source: str | Path, revision: str | None) -> tuple[str | Path, str | None]:
    """The folder or hub id whose files hold the head, and its revision: for an adapter, those of the base model."""
    check_source(source, revision)
    adapter = find_adapter(source, revision)
    if adapter is None:
        return source, revision
    _check_unchanged(load_skeleton(source, revision=revision), adapter)
    return _holder(adapter.base, adapter.base_revision)


def _located(source: str | Path, revision: str | None) -> tuple[Head, WeightFiles, list[str]]:
    """The head without weights, and the names under which its weight and its bias, if any, are saved in the files."""
    skeleton = load_skeleton(source, revision=revision)
    head, saved = read_head(skeleton, "teacher"), find_weights(source, revision)
    module = _name(skeleton, skeleton.get_output_embeddings())
    tied = [name for name, weight in skeleton.named_parameters(remove_duplicate=False) if weight is head.weight]
    names = [f"{module}.weight", *(name for name in tied if name != f"{module}.weight"), _RENAMED]
    found = [_saved_name(saved, names, head.weight)]
    if head.bias is not None:
        found.append(_saved_name(saved, [f"{module}.bias"], head.bias))
    return head, saved, found


def _name(model: Any, module: Any) -> str:
    return next(name for name, own in model.named_modules() if own is module)


def _check_unchanged(adapted: Any, adapter: Adapter) -> None:
    """Raises MismatchError if an adapter changes the output head, or the embedding that the head is tied to."""
    head, embedding = adapted.get_output_embeddings(), adapted.get_input_embeddings()
    weights = {id(weight) for weight in head.parameters()}
    tied = any(id(weight) in weights for weight in embedding.parameters())
    for module in [head, *[embedding] * tied]:
        if type(module).__module__.startswith("peft."):
            raise MismatchError(
                f"the adapter '{adapter.source}' changes the output head of its base '{adapter.base}', which is read "
                "alone; merge it with vopd merge, and serve and name the result"
            )


def _saved_name(saved: WeightFiles, names: list[str], expected: Tensor) -> str:
    """The name of the first of the weights that is saved, whole and in the shape that the configuration gives it."""
    for name in names:
        module, _, kind = name.rpartition(".")
        beside = [other for other in _like(saved, module) if other.rpartition(".")[2] not in ("weight", "bias")]
        if beside:
            raise _quantized(saved, beside[0])
        if (found := _find(saved, module, kind, tuple(expected.shape))) is None:
            continue
        if saved.dtype(found) not in _FLOATING:
            raise _quantized(saved, found)
        if saved.shape(found) != tuple(expected.shape):
            raise MismatchError(
                f"'{saved.source}' has weights of another shape than its config.json says: {found} is "
                f"{saved.shape(found)}, not {tuple(expected.shape)}; put the config.json of these weights there"
            )
        return found
    names = [name for name in names if name != _RENAMED]
    raise MismatchError(
        f"'{saved.source}' lacks the weights of the output head: {' or '.join(names)}; take the whole checkpoint of a "
        "causal language model, with the config.json of its weights"
    )


def _find(saved: WeightFiles, module: str, kind: str, shape: tuple[int, ...]) -> str | None:
    """The name under which a weight is saved; None if it is not."""
    if f"{module}.{kind}" in saved.files:
        return f"{module}.{kind}"
    found = [name for name in _like(saved, module) if name.endswith(f".{kind}")]
    if len(found) > 1:
        found = [name for name in found if saved.shape(name) == shape] or found
    if len(found) > 1:
        raise MismatchError(
            f"'{saved.source}' has several weights that may be those of the output head: {', '.join(found)}; pass a "
            "checkpoint of the text model alone"
        )
    return next(iter(found), None)


def _like(saved: WeightFiles, module: str) -> Iterator[str]:
    """The saved weights of a module that may stand elsewhere, as in the checkpoint of a larger model.

    Not within a numbered layer, where models that predict several tokens ahead repeat it.
    """
    last = module.rpartition(".")[2]
    for name in sorted(saved.files):
        parts = name.split(".")
        if parts[-2:-1] == [last] and not any(part.isdigit() for part in parts):
            yield name


def _quantized(saved: WeightFiles, name: str) -> MismatchError:
    return MismatchError(
        f"the output head of '{saved.source}' is quantized ({name} is {saved.dtype(name)}), which is not supported; "
        "serve and name a checkpoint whose head is float32, bfloat16 or float16"
    )

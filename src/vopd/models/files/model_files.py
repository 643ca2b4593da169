"""Finds what is damaged in a model's folder without loading it: files that are cut off, missing, or not JSON."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

_AGAIN = "copy or download it again"
_ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
_WHOLE = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def has_weights(folder: Path) -> bool:
    """Whether the folder has the weights of a whole model, not only of an adapter."""
    return any((folder / name).exists() for name in _WHOLE)


def damage(folder: str | Path) -> str | None:
    """Return the first damage in a local folder, with what to do about it; None if nothing is found."""
    return _broken_json(Path(folder)) or damaged_weights(folder)


def damaged_weights(folder: str | Path) -> str | None:
    """Return what is wrong with the files of weights, by their sizes and headers alone."""
    path = Path(folder)
    names = _ADAPTER if (path / "adapter_config.json").exists() else _WHOLE
    first = next((path / name for name in names if (path / name).exists()), None)
    if first is None:
        return f"'{folder}' has no weights: neither {names[0]} nor another file of them; {_AGAIN}"
    if first.suffix != ".json":
        return damaged_file(first)
    return next(_listed_damage(first), None)


def _listed_damage(index: Path) -> Iterator[str]:
    """The damage of the files that an index lists."""
    places = listed_weights(index)
    if places is None:
        yield f"{index} is no index of weights; {_AGAIN}"
        return
    for name in sorted(set(places.values())):
        if not (index.parent / name).exists():
            yield f"{index.name} names {name}, which is not in '{index.parent}'; {_AGAIN}"
        elif (problem := damaged_file(index.parent / name)) is not None:
            yield problem


def listed_weights(index: Path) -> dict[str, str] | None:
    """Return the file that an index lists for each weight; None if it is no index of weights."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError):
        return None
    whole = isinstance(places, dict) and all(isinstance(name, str) for name in places.values())
    return places if whole else None


def damaged_file(path: Path) -> str | None:
    """Return what is wrong with one file of weights, by its size and header; None if nothing is found."""
    size = path.stat().st_size
    if path.suffix == ".safetensors":
        whole = _safetensors_size(path)
        if whole is None and _begins(path, b"version https://git-lfs"):
            return f"{path} is a pointer of Git LFS; fetch the file itself with git lfs pull"
        if whole is None:
            return f"{path} is no safetensors file ({size:,} bytes); {_AGAIN}"
        return None if size == whole else f"{path} is cut off: {size:,} of {whole:,} bytes; {_AGAIN}"
    zipped = _begins(path, b"PK")  # older files of torch are plain pickles
    broken = size == 0 or (zipped and not zipfile.is_zipfile(path))
    return f"{path} is cut off ({size:,} bytes); {_AGAIN}" if broken else None


def _begins(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


def _safetensors_size(path: Path) -> int | None:
    """The size that the header of a safetensors file gives it; None if it has none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= path.stat().st_size:
            return None
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
    return 8 + length + max(ends, default=0)


def _broken_json(folder: Path) -> str | None:
    """Damage of one of the JSON files, of which a model and its tokenizer have half a dozen."""
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # also of text that is not UTF-8
            return f"{path} is not a valid JSON file ({error}); {_AGAIN}"
        if path.name.endswith("config.json") and not isinstance(content, dict):
            return f"{path} is not a configuration, but a {type(content).__name__}; {_AGAIN}"
    return None

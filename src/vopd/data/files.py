"""Local data as it lies on the disk: which files a name stands for, and their bytes, unpacked.

Nothing here needs a package: whether data exist is checked before anything heavy is imported.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import hashlib
import lzma
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from vopd.errors import DataError, did_you_mean, first_line, require

JSON, CSV, PARQUET, ARROW = "JSON", "CSV", "parquet", "arrow"
KINDS = {
    ".jsonl": JSON, ".ndjson": JSON, ".json": JSON, ".csv": CSV, ".tsv": CSV, ".parquet": PARQUET, ".arrow": ARROW,
}  # fmt: skip
ACCEPTED = ".jsonl, .json, .csv, .tsv, .parquet or .arrow, also packed as .gz, .bz2, .xz or .zst"
_GZIP = b"\x1f\x8b"
_LFS = b"version https://git-lfs"


def _zstd(data: bytes) -> bytes:
    arrow = require("pyarrow", "train")
    return bytes(arrow.CompressedInputStream(arrow.BufferReader(data), "zstd").read())


_UNPACK = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress, ".zst": _zstd}


def as_path(name: str | Path) -> Path:
    """The path of a name, with the home folder in place of "~"."""
    return Path(os.path.expanduser(name))


def suffix(name: str | Path) -> str:
    """The suffix that tells the kind of a file, in lower case and without that of its packing: .csv of "A.CSV.gz"."""
    path = Path(str(name).lower())
    return Path(path.stem).suffix if path.suffix in _UNPACK else path.suffix


def title(name: str | Path) -> str:
    """A short name of local data: "prompts" for prompts.jsonl.gz, "data" for data/*.jsonl."""
    path = as_path(name)
    while glob.has_magic(path.name) and not os.path.exists(path):
        path = path.parent
    end = path.name.lower().rfind(suffix(path)) if suffix(path) in KINDS else None
    return path.name[:end]


def is_local(name: str | Path) -> bool:
    """Whether a name means data on this machine, there or not: it exists, is written as a path or as a pattern, or has
    the suffix of a data file. Anything else may be the id of a hub dataset."""
    text = str(name)
    written_so = text.startswith((".", "/", "~")) or text.count("/") > 1 or glob.has_magic(text)
    return "://" not in text and (written_so or suffix(text) in KINDS or exists(text))


def exists(name: str | Path) -> bool:
    """Whether there is a file or folder of this name, or a file that matches it as a pattern."""
    return bool(str(name)) and (os.path.exists(as_path(name)) or bool(_matches(name)))


def check_there(name: str | Path) -> None:
    """Raise DataError if a local name stands for nothing."""
    if "://" in str(name):
        raise DataError(
            f"'{name}' is a URL, which is not read; download it and name the file, or name the id of a hub dataset, "
            "such as openai/gsm8k"
        )
    if exists(name):
        return
    if glob.has_magic(str(name)):
        raise DataError(f"no file matches '{name}'")
    path = as_path(name)
    beside = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() and path.name else []
    hint = did_you_mean(path.name, beside)
    raise DataError(f"there is no file '{name}' and no folder of that name" + (f"; {hint}" if hint else ""))


def named_files(name: str | Path) -> list[Path]:
    """The files that a name stands for, in order of their names: one, those that match a pattern, or all in a folder.

    Raises:
        DataError: there is nothing of this name.
    """
    check_there(name)
    path = as_path(name)
    if path.is_dir():
        return sorted(one for one in path.rglob("*") if one.is_file())
    return [path] if path.exists() else _matches(name)


def _matches(name: str | Path) -> list[Path]:
    found = glob.glob(str(as_path(name)), recursive=True) if glob.has_magic(str(name)) else []
    return sorted(path for path in map(Path, found) if path.is_file())


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked if its name ends in .gz, .bz2, .xz or .zst.

    Raises:
        DataError: the file cannot be read or unpacked, is empty, or only stands for one in Git LFS.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror or error}; check its permissions") from error
    if data.startswith(_LFS):
        raise DataError(f"'{path}' is a pointer to a file in Git LFS, not the data; fetch them with: git lfs pull")
    unpack = _UNPACK.get(path.suffix.lower())
    if unpack is not None:
        try:
            return unpack(data)
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
            raise DataError(
                f"cannot unpack '{path}': {first_line(error)}; it is damaged or incomplete, or not packed at all"
            ) from error
    if data.startswith(_GZIP):
        raise DataError(f"'{path}' is packed with gzip; rename it to {path.name}.gz")
    return data


def digest(paths: Sequence[Path]) -> str:
    """A short digest of the content of files; it changes if any of them does."""
    each = []
    for path in paths:
        try:
            with path.open("rb") as file:
                each.append(hashlib.file_digest(file, "sha256"))
        except OSError as error:
            raise DataError(f"cannot read '{path}': {error.strerror or error}; check its permissions") from error
    whole = each[0] if len(each) == 1 else hashlib.sha256(b"".join(one.digest() for one in each))
    return f"sha256 {whole.hexdigest()[:12]}"

"""Local data by name: a file, a pattern of files, a folder of shards, a downloaded hub dataset, or a saved dataset."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from glob import escape
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any

from vopd.errors import ConfigurationError, DataError, did_you_mean, first_line, one_line, require

from .exact_columns import to_dataset
from .files import ACCEPTED, KINDS, PARQUET, as_path, check_there, digest, named_files, read_bytes, suffix
from .text_rows import OPTIONS, PlacedRow, RowPlace, read_text_rows

logger = logging.getLogger(__name__)

_DICT, _STATE, _CARD = "dataset_dict.json", "state.json", "README.md"


def load_local(
    name: str, split: str | None, options: Mapping[str, Any], count: int | None = None
) -> tuple[Any, str, RowPlace]:
    """Return the rows of local data as a `datasets.Dataset`, their version, and where each row is.

    The version is a digest of all files that were read, or the fingerprint of a saved dataset. Nothing is cached, and
    nothing is written to where the data are.

    Values of JSON and CSV files are as they are written (`exact_columns` says how); those of parquet and Arrow files
    and of saved datasets have the types that they were saved with.

    Args:
        name: a file, a pattern, or a folder.
        split: of a folder that has several; None: test, or the only one.
        options: `field` of JSON files; `delimiter`, `quotechar` and `column_names` of CSV files; `encoding` of both;
            `name`, the configuration, of a folder whose README.md has several.
        count: of the first rows that are enough.

    Raises:
        DataError: something is missing or malformed; names the file and the line or row.
        ConfigurationError: an option does not belong to these data.
    """
    saved = _saved_folder(name, split)
    if saved is not None:
        _check_options(name, "a saved dataset", options, ())
        return *_load_saved(saved), partial("'{}' row {}".format, name)
    files = _data_files(name, split, options)
    kind = KINDS[suffix(files[0])]
    if kind in OPTIONS:
        placed = list(islice(_rows(files, options), count))
        places = [place for place, _ in placed]
        return to_dataset([row for _, row in placed], places.__getitem__), digest(files), places.__getitem__
    tables = list(map(_read_table, files))
    return _together(files, tables), digest(files), _place_in(files, tables)


def local_rows(name: str, split: str | None = None) -> list[PlacedRow]:
    """Return the rows of local data as dictionaries, each with its place for messages.

    Rows of JSON and CSV files have just the keys that are written.

    Raises:
        DataError, ConfigurationError: as `load_local`.
    """
    files = [] if _saved_folder(name, split) else _data_files(name, split, {})
    if files and KINDS[suffix(files[0])] in OPTIONS:
        return list(_rows(files, {}))
    dataset, _, place = load_local(name, split, {})
    return [(place(index), row) for index, row in enumerate(dataset.to_list())]


def choose_split(splits: Iterable[str], wanted: str | None, name: str) -> str:
    """Return the wanted split; without one, "test", or the only one that there is.

    Raises:
        DataError: there is none; lists those that there are.
    """
    known = list(splits)
    if wanted is None:
        wanted = known[0] if len(known) == 1 else "test"
    if wanted not in known:
        raise DataError(
            f"'{name}' has no split '{wanted}'; it has {', '.join(known)}: choose one by dataset_split or its path"
        )
    return wanted


def _rows(files: Sequence[Path], options: Mapping[str, Any]) -> Iterator[PlacedRow]:
    return chain.from_iterable(read_text_rows(path, options) for path in files)


def _data_files(name: str, split: str | None, options: Mapping[str, Any]) -> list[Path]:
    """The files of the split, all of one kind."""
    folder = as_path(name)
    check_there(name)
    found = _of_split(folder, split, options.get("name")) if folder.is_dir() else named_files(name)
    files = [path for path in found if suffix(path) in KINDS]
    if not files:
        what = f"the folder '{name}' has no data files" if folder.is_dir() else f"'{name}' has an unsupported file type"
        raise DataError(f"{what}; use {ACCEPTED}")
    kinds = sorted({KINDS[suffix(path)] for path in files})
    if len(kinds) > 1:
        raise DataError(
            f"'{name}' has files of several kinds: {', '.join(kinds)}; name those to read, such as "
            f"'{folder if folder.is_dir() else folder.parent}/*{suffix(files[0])}'"
        )
    known = [*OPTIONS.get(kinds[0], ()), *(["name"] if _has_configurations(folder) else [])]
    _check_options(name, f"{kinds[0]} files", options, known)
    return files


def _check_options(name: str, what: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    for option in options:
        if option not in known:
            others = f"they have {', '.join(known)}" if known else "remove it"
            hint = did_you_mean(option, known, others)
            raise ConfigurationError(f"unknown option '{option}' in the dataset_options of '{name}', {what}; {hint}")


def _of_split(folder: Path, split: str | None, configuration: str | None) -> list[Path]:
    """The files of a split of a folder, found as `datasets.load_dataset(folder)` does: by README.md or by names."""
    datasets = require("datasets", "train")
    by_card = _has_configurations(folder)
    try:
        with quiet(), tempfile.TemporaryDirectory() as cache:
            if by_card:
                # The builder finds the files, but is not asked to read them; it leaves a lock in its cache.
                builder = datasets.load_dataset_builder(str(folder), configuration, cache_dir=cache)
                splits = builder.config.data_files
            else:
                patterns = datasets.data_files.get_data_patterns(escape(str(folder)))
                splits = datasets.data_files.DataFilesDict.from_patterns(patterns, base_path=escape(str(folder)))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if not by_card and isinstance(error, FileNotFoundError):
            return []
        why = one_line(error).partition(" Example of usage")[0]
        raise DataError(
            f"cannot find the data files of '{folder}': {why}; a configuration of README.md is chosen with "
            "dataset_options={name: NAME}"
        ) from error
    files = {str(key): [folder / os.path.relpath(path, folder) for path in paths] for key, paths in splits.items()}
    if not by_card:
        _tell_left_out(folder, chain.from_iterable(files.values()))
    return files[choose_split(files, split, str(folder))]


def _has_configurations(folder: Path) -> bool:
    """Whether the README.md of a folder says which files it has."""
    card = folder / _CARD
    return card.is_file() and b"\nconfigs:" in card.read_bytes()


def _tell_left_out(folder: Path, found: Iterable[Path]) -> None:
    """Once one file has a split in its name, `datasets` leaves out those that have none."""
    ignored = require("datasets", "train").data_files.FILES_TO_IGNORE
    data = (path.relative_to(folder) for path in named_files(folder) if suffix(path) in KINDS)
    visible = {path for path in data if path.name not in ignored and not any(part[0] in "._" for part in path.parts)}
    left = sorted(visible - {path.relative_to(folder) for path in found})
    if left:
        names = ", ".join(map(str, left))
        logger.warning("'%s': not read, since other files name their split, and these do not: %s", folder, names)


def _saved_folder(name: str, split: str | None) -> Path | None:
    """The folder of a dataset that `save_to_disk` wrote, in it that of the split; None if it is none."""
    folder = as_path(name)
    if not (folder / _DICT).is_file():
        return folder if (folder / _STATE).is_file() else None
    return folder / choose_split(_read_json(folder / _DICT).get("splits", ()), split, name)


def _load_saved(folder: Path) -> tuple[Any, str]:
    datasets = require("datasets", "train")
    try:
        # In memory: what `datasets` makes of data on the disk, it caches beside them.
        with quiet():
            dataset = datasets.load_from_disk(str(folder), keep_in_memory=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"cannot load the saved dataset '{folder}': {first_line(error)}; save it again") from error
    return dataset.with_format(None), f"fingerprint {_read_json(folder / _STATE).get('_fingerprint', 'unknown')}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(read_bytes(path)))
    except ValueError as error:
        raise DataError(f"'{path}' is damaged: {first_line(error)}; save the dataset again") from error


def _place_in(files: Sequence[Path], tables: Sequence[Any]) -> RowPlace:
    starts = [0, *accumulate(map(len, tables))]

    def place(index: int) -> str:
        part = bisect(starts, index) - 1
        return f"'{files[part]}' row {index - starts[part]}"

    return place


def _together(files: Sequence[Path], tables: Sequence[Any]) -> Any:
    arrow, datasets = require("pyarrow", "train"), require("datasets", "train")
    try:
        together = arrow.concat_tables(tables, promote_options="permissive")
    except (ValueError, TypeError) as error:
        raise DataError(_differing(files, tables)) from error
    try:
        return datasets.Dataset(together)
    except (ValueError, TypeError) as error:
        raise DataError(f"'{files[0]}' has a column that cannot be used: {first_line(error)}; drop it") from error


def _read_table(path: Path) -> Any:
    arrow = require("pyarrow", "train")
    kind, source = KINDS[suffix(path)], arrow.BufferReader(read_bytes(path))
    try:
        if kind == PARQUET:
            table = require("pyarrow.parquet", "train").ParquetFile(source).read()
        else:
            table = _read_arrow(arrow, source)
    except (OSError, ValueError) as error:  # pyarrow raises either
        raise DataError(f"'{path}' is not a readable {kind} file: {first_line(error)}") from error
    twice = next((name for name in table.column_names if table.column_names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"'{path}' has two columns of the name '{twice}'; rename one")
    return table


def _read_arrow(arrow: Any, source: Any) -> Any:
    """A file of either of the two forms that Arrow has; `datasets` writes streams, pandas and polars files."""
    try:
        return arrow.ipc.open_file(source).read_all()
    except arrow.ArrowInvalid:
        source.seek(0)
        return arrow.ipc.open_stream(source).read_all()


def _differing(files: Sequence[Path], tables: Sequence[Any]) -> str:
    types: dict[str, tuple[Path, Any]] = {}
    for path, table in zip(files, tables, strict=True):
        for field in table.schema:
            first, kind = types.setdefault(field.name, (path, field.type))
            if kind != field.type and "null" not in map(str, (kind, field.type)):
                return f"'{path}' has {field.type} in '{field.name}', but '{first}' has {kind}; give them one type"
    return f"the files from '{files[0]}' to '{files[-1]}' have columns of different types"


@contextmanager
def quiet() -> Iterator[None]:
    """Context without the progress bars and log lines of `datasets`."""
    datasets = require("datasets", "train")
    shown, level = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if shown:
            datasets.enable_progress_bars()

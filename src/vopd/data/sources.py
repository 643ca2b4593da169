"""One source of prompts: local data, a Hugging Face Hub dataset, or a reasoning_gym task."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vopd.errors import ConfigurationError, DataError, did_you_mean, require
from vopd.hub import hub_refusal

from .exact_columns import to_dataset
from .files import is_local
from .local_data import load_local, quiet, row_place
from .reasoning import reasoning_problems

TASK_PREFIX = "reasoning_gym:"
DEFAULT_TASK_COUNT = 1000
_COMMIT = re.compile(r"\b[0-9a-f]{40}\b")


@dataclass(frozen=True)
class Source:
    """A source of prompts.

    Attributes:
        source: a data file, a pattern of files, a folder of files or of `save_to_disk`, a hub id, or
            "reasoning_gym:NAME".
        weight: share in a mixture of several sources, relative to the other weights.
        split: split of a hub dataset or of a folder.
        revision: branch, tag or commit of a hub dataset.
        count: use only the first `count` rows; for a task, the number of problems to generate.
        options: options of the reasoning_gym task, or arguments of `datasets.load_dataset` such as name; those that
            apply to local data are in `vopd.data.local_data.load_local`.
        template: text in which {column} is replaced by that column of the row.
    """

    source: str
    weight: float = 1.0
    split: str = "train"
    revision: str | None = None
    count: int | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    template: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.source, str) or not self.source:
            raise ConfigurationError(
                f"a source must be a file, a folder, a hub id or reasoning_gym:NAME, not {self.source!r}"
            )
        if type(self.weight) not in (int, float) or not 0 < self.weight < float("inf"):
            raise ConfigurationError(f"the weight of '{self.source}' must be a positive number, not {self.weight!r}")
        if self.count is not None and (not isinstance(self.count, int) or self.count < 1):
            raise ConfigurationError(f"the count of '{self.source}' must be at least 1, got {self.count!r}")

    @property
    def task(self) -> str | None:
        """The name of the reasoning_gym task, or None."""
        return self.source.removeprefix(TASK_PREFIX) if self.source.startswith(TASK_PREFIX) else None

    def place(self, row: int) -> str:
        """Where a row is, for messages: the file and the line of local data."""
        if self.local:
            return row_place(self.source, self.split, self.options, row)
        return f"'{self.source}' row {row}"

    @property
    def local(self) -> bool:
        """Whether the source is data on this machine, there or not."""
        return self.task is None and is_local(self.source)

    @property
    def on_hub(self) -> bool:
        """Whether the source is a hub id: neither a task nor local, nor a URL."""
        return self.task is None and not self.local and "://" not in self.source


def parse_sources(given: Any, defaults: Mapping[str, Any]) -> list[Source]:
    """Return the sources described by `given`, one or a list; missing fields are taken from `defaults`.

    Raises:
        ConfigurationError: a key is unknown, or common options are given for several sources.
    """
    entries = list(given) if isinstance(given, list | tuple) else [given]
    if not entries:
        raise ConfigurationError("the list of sources is empty; add a file, a folder, a hub id or reasoning_gym:NAME")
    if len(entries) > 1 and defaults["options"]:
        raise ConfigurationError("with several sources, options go into each source: {source: ..., options: ...}")
    return [_parse(entry, defaults) for entry in entries]


def _parse(given: Any, defaults: Mapping[str, Any]) -> Source:
    if isinstance(given, str | Path):
        given = {"source": str(given)}
    if not isinstance(given, Mapping) or "source" not in given:
        raise ConfigurationError(f"a source of prompts must be a text or {{source: ..., weight: ...}}, not {given!r}")
    known = [entry.name for entry in dataclasses.fields(Source)]
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known, f"use one of {', '.join(known)}")
            raise ConfigurationError(f"unknown key '{name}' in the source '{given['source']}'; {hint}")
    return Source(**{**defaults, **given})


def load_rows(source: Source, count: int | None, seed: int) -> tuple[Any, str]:
    """Return a `datasets.Dataset` with at most `count` rows of the source, and its version.

    The version is the commit of a hub dataset if it is known, the digest of local files, the fingerprint of a saved
    dataset, or the library's version and the seed for a task.

    Raises:
        DataError: the source is missing, unreadable, or has no rows.
        ConfigurationError: an option does not belong to the source.
    """
    if source.task is not None:
        rows = _task_rows(source.task, count or DEFAULT_TASK_COUNT, seed, source.options)
        version = f"reasoning_gym {importlib.metadata.version('reasoning_gym')}, seed {seed}"
        return to_dataset(rows, source.place), version
    if source.on_hub:
        dataset, version = _from_hub(source)
    else:
        dataset, version = load_local(source.source, source.split, source.options, count)
    if len(dataset) == 0:
        raise DataError(f"'{source.source}' has no rows")
    return (dataset if count is None else dataset.select(range(min(count, len(dataset))))), version


def with_column(dataset: Any, name: str, values: Sequence[Any], feature: Any = None) -> Any:
    """Return `dataset` with a column added or replaced; its feature is inferred unless it is given."""
    # Added under another name first: without any columns, the dataset would have no rows either.
    with quiet():
        added = dataset.add_column("_vopd_new", values, feature=feature)
    kept = added.remove_columns([name]) if name in dataset.column_names else added
    return kept.rename_column("_vopd_new", name)


def _task_rows(name: str, count: int, seed: int, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"problem": it.question, "answer": it.answer, "task": it.task, "metadata": json.dumps(it.metadata, default=str)}
        for it in reasoning_problems(name, count, seed, **options)
    ]


def _from_hub(source: Source) -> tuple[Any, str]:
    datasets = require("datasets", "train")
    try:
        dataset = datasets.load_dataset(source.source, split=source.split, revision=source.revision, **source.options)
    except Exception as error:  # of whichever library makes the request
        raise DataError(
            f"cannot load '{source.source}', split '{source.split}': {hub_refusal(error)}; no file or folder has this "
            "name: give one that is here, a hub id that this machine can reach, or reasoning_gym:NAME"
        ) from error
    version = recorded_commit(dataset) or source.revision or "unknown revision"
    if source.revision and _COMMIT.fullmatch(source.revision) and version != source.revision:
        # Without network access `datasets` uses whatever commit is in its cache.
        raise DataError(f"'{source.source}' was requested at {source.revision}, but the local cache has {version}")
    return dataset, version


def recorded_commit(dataset: Any) -> str | None:
    """Return the commit of a hub dataset, from its checksums or its cache folder; None if it is unknown."""
    places = [*(dataset.info.download_checksums or {}), *(file["filename"] for file in dataset.cache_files)]
    found = (_COMMIT.search(str(place)) for place in places)
    return next((match.group() for match in found if match), None)

"""Mixes several sources of prompts in proportion to their weights."""

from __future__ import annotations

import logging
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any

from vopd.errors import DataError, counted, require

from .exact_columns import fitted
from .sources import with_column

logger = logging.getLogger(__name__)

_NOTHING = "Value('null')"
"""The feature of a column without values, which takes any other type."""


def shares(weights: Sequence[float], total: int) -> list[int]:
    """Split `total` in proportion to `weights` into integers that add up to it, each within 1 of its exact share."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda index: counts[index] - exact[index])
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts


def most_without_repeats(weights: Sequence[float], sizes: Sequence[int | None]) -> int | None:
    """Return the largest number of prompts in a mixture before one of its sources runs out.

    A size of None means an unlimited source; the result is None if all are unlimited.
    """
    limits = [
        int(size * sum(weights) / weight) for weight, size in zip(weights, sizes, strict=True) if size is not None
    ]
    total = min(limits, default=None)
    # Rounding to whole prompts can require one more than there are.
    while total and any(size is not None and count > size for count, size in zip(shares(weights, total), sizes)):
        total -= 1
    return total


def mix(datasets: Sequence[Any], names: Sequence[str]) -> Any:
    """Interleave datasets evenly, so that every part of the result has about the same proportions.

    Every row gets a column "source". Columns that only some datasets have are None for the others. A column whose type
    differs between datasets becomes what it would be in one file (`exact_columns`): text and numbers become text. One
    that fits nothing, such as dates beside text, is dropped with a warning.
    """
    library = require("datasets", "train")
    datasets = _of_one_type(datasets, names)
    parts = []
    for dataset, source in zip(datasets, names, strict=True):
        kept = dataset.remove_columns([name for name in ("source",) if name in dataset.column_names])
        parts.append(kept.add_column("source", [source] * len(kept)))
    together = library.concatenate_datasets(parts)
    places = [(index + 0.5) / len(part) for part in parts for index in range(len(part))]
    return together.select(sorted(range(len(places)), key=places.__getitem__))


def take(dataset: Any, count: int, name: str) -> Any:
    """Return the first `count` rows.

    Raises:
        DataError: there are fewer rows.
    """
    if len(dataset) < count:
        raise DataError(
            f"'{name}' has {counted(len(dataset), 'prompt')}, but its weight requires {count}; lower max_prompts or "
            "its weight"
        )
    return dataset.select(range(count))


def _of_one_type(datasets: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """The datasets with one type for each column."""
    kinds: dict[str, set[str]] = {}
    for dataset in datasets:
        for column, kind in dataset.features.items():
            kinds.setdefault(column, set()).add(str(kind))
    starts = [0, *accumulate(map(len, datasets))]

    def place(row: int) -> str:
        part = bisect(starts, row) - 1
        return f"'{names[part]}' row {row - starts[part]}"

    found = list(datasets)
    for column in sorted(name for name, its in kinds.items() if len(its - {_NOTHING}) > 1 and name != "source"):
        having = [column in dataset.column_names for dataset in found]
        values = [dataset[column][:] if has else [None] * len(dataset) for dataset, has in zip(found, having)]
        try:
            fits = fitted([*chain.from_iterable(values)], column, place)
        except DataError as error:
            logger.warning("the column '%s' has different types in different sources and is dropped: %s", column, error)
            found = [dataset.remove_columns(column) if has else dataset for dataset, has in zip(found, having)]
            continue
        found = [
            with_column(dataset, column, fits[start:end]) for dataset, start, end in zip(found, starts, starts[1:])
        ]
    return found

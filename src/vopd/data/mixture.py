"""Mixes several sources of prompts in proportion to their weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from vopd.errors import DataError, counted, require

logger = logging.getLogger(__name__)


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

    Every row gets a column "source". Columns that only some datasets have are None for the others. Columns whose type
    differs between datasets are dropped with a warning, except "answer", which is converted to text.
    """
    library = require("datasets", "train")
    left_out = _differing_columns(datasets)
    if "answer" in left_out:
        left_out.remove("answer")
        datasets = [_with_text_answers(dataset) for dataset in datasets]
    if left_out:
        logger.warning("columns %s have different types in different sources and are dropped", ", ".join(left_out))
    parts = []
    for dataset, source in zip(datasets, names, strict=True):
        kept = dataset.remove_columns([name for name in (*left_out, "source") if name in dataset.column_names])
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


def _differing_columns(datasets: Sequence[Any]) -> list[str]:
    kinds: dict[str, set[str]] = {}
    for dataset in datasets:
        for name, kind in dataset.features.items():
            kinds.setdefault(name, set()).add(str(kind))
    return sorted(name for name, found in kinds.items() if len(found) > 1 and name != "source")


def _with_text_answers(dataset: Any) -> Any:
    if "answer" not in dataset.column_names:
        return dataset
    answers = [None if answer is None else str(answer) for answer in dataset["answer"]]
    return dataset.remove_columns("answer").add_column("answer", answers)

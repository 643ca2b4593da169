"""Puts rows into a `datasets.Dataset` without changing their values.

Arrow has one type for each column. Three kinds of columns do not fit and would be refused or changed:

- Texts, numbers and true or false in one column, and whole numbers beyond 64 bits: they become text, as written.
- Objects that do not all have the same keys, such as messages of which some have tool calls: Arrow gives each of them
  all the keys, with None. They become `datasets.Json`, which returns each object as it was. (It returns floats to
  within their last digit, and NaN as None.)
- Lists and other values in one column, such as prompts that are text or messages: `datasets.Json` too.

Columns of parquet and Arrow files, saved folders and hub datasets arrive with the types they have, so there an object
may have keys with None that its author never wrote.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

from vopd.errors import DataError, require

from .prompt_columns import columns_of
from .text_rows import RowPlace, Written

logger = logging.getLogger(__name__)

_NONE, _SCALARS, _NUMBERS = type(None), {str, int, float, bool, Written}, {int, float, Written}
_LARGEST = 2**63 - 1
_LONG = re.compile(r"\d{19}")
_WORDS = {
    str: "text", int: "a number", float: "a number", Written: "a number", bool: "true or false", list: "a list",
    dict: "an object",
}  # fmt: skip


def to_dataset(rows: Sequence[dict[str, Any]], place: RowPlace) -> Any:
    """Return rows as a `datasets.Dataset`; a key that a row lacks is None.

    Args:
        rows: rows of a file or task.
        place: where the row of an index is, for messages.

    Raises:
        DataError: a value fits no column; names its place and column.
    """
    datasets, arrow = require("datasets", "train"), require("pyarrow", "train")
    try:
        columns = {name: fitted([row.get(name) for row in rows], name, place) for name in columns_of(rows)}
        return datasets.Dataset(arrow.table(columns))
    except (RecursionError, arrow.ArrowInvalid) as error:
        raise DataError(f"{place(0)} or a row after it is nested too deeply") from error


def fitted(values: list[Any], name: str, place: RowPlace) -> Any:
    """Return the values of a column as a `pyarrow.Array`: as they are if Arrow can keep them so, else as text or JSON.

    Raises:
        DataError: a value fits nothing.
    """
    arrow = require("pyarrow", "train")
    kinds = set(map(type, values)) - {_NONE}
    if kinds <= _NUMBERS:
        as_text = _too_large(values, kinds)
    else:
        as_text = kinds <= _SCALARS and len(kinds) > 1
    if as_text:
        _tell(values, name, place)
        values = [None if value is None else _as_written(value) for value in values]
    elif not _alike(values):
        texts = (None if value is None else _as_json(value, name, place, row) for row, value in enumerate(values))
        return arrow.array(texts, arrow.string()).cast(arrow.json_())
    try:
        return arrow.array(values)
    except (ValueError, TypeError, OverflowError, NotImplementedError) as error:  # pyarrow raises all of them
        raise DataError(f"{place(0)} and the following rows have values in '{name}' that fit no column") from error


def _too_large(values: list[Any], kinds: set[type]) -> bool:
    """Whether whole numbers exceed 64 bits, or the 53 of the floats that they become beside some."""
    numbers = (abs(value) for value in values if type(value) is int)
    return max(numbers, default=0) > (_LARGEST if kinds == {int} else 2**53)


def _tell(values: list[Any], name: str, place: RowPlace) -> None:
    kinds = [(row, _WORDS[type(value)]) for row, value in enumerate(values) if value is not None]
    (row, word), other = kinds[0], next((found for found in kinds if found[1] != kinds[0][1]), None)
    if other is None:
        row, word = max(kinds, key=lambda found: abs(values[found[0]]))[0], "a number that is too large for Arrow"
    why = f"{place(row)} has {word}" + ("" if other is None else f", {place(other[0])} {other[1]}")
    logger.info("the column '%s' is read as text, just as it is written: %s", name, why)


def _as_written(value: Any) -> str:
    if isinstance(value, str):
        return value
    return value.text if isinstance(value, Written) else json.dumps(value)


def _as_json(value: Any, name: str, place: RowPlace, row: int) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        raise DataError(
            f"{place(row)} has a value of another type in '{name}' than other rows: {value!r:.40}"
        ) from error
    if _LONG.search(text) and any(abs(number) > _LARGEST for number in _whole_numbers(value)):
        raise DataError(f"{place(row)} has a whole number beyond 64 bits in '{name}'; write it as text")
    return text


def _whole_numbers(value: Any) -> list[int]:
    if isinstance(value, dict | list):
        return [*chain.from_iterable(map(_whole_numbers, value.values() if isinstance(value, dict) else value))]
    return [value] if type(value) is int else []


def _alike(values: Sequence[Any], inside: bool = False) -> bool:
    """Whether values are of one kind, and objects have the same keys in the same order, all the way down.

    Whole numbers and floats are of one kind, but not `inside` of objects, which templates may print.
    """
    kinds = set(map(type, values)) - {_NONE}
    if len(kinds) > 1:
        return kinds <= ({float, Written} if inside else _NUMBERS)
    given = [value for value in values if value is not None]
    if kinds == {list}:
        return _alike([*chain.from_iterable(given)], inside)
    if kinds == {dict}:
        keys = set(map(tuple, given))
        return len(keys) == 1 and keys != {()} and all(_alike([row[key] for row in given], True) for key in given[0])
    return kinds != {int} or max(map(abs, given)) <= _LARGEST

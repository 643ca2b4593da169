"""Reads the rows of JSON and CSV files, each with its place in the file and every value as it is written.

`datasets.load_dataset` is not used for them, because it changes values without a word (measured with 5.2.0): in JSON,
texts such as "2024-01-01" become timestamps and whole numbers beyond 64 bits become floats; in CSV, "007" becomes 7.0,
"NA" and "None" become missing, and rows that all have a value too many are shifted by one column. It also keeps a copy
of each file in its cache, which goes stale if the file changes within the resolution of its time stamp.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vopd.errors import ConfigurationError, DataError, counted, first_line

from .files import CSV, KINDS, read_bytes, suffix

OPTIONS = {CSV: ("delimiter", "quotechar", "column_names", "encoding"), "JSON": ("field", "encoding")}
"""What `dataset_options` may set for each kind of file; the names are those of `datasets.load_dataset`."""

PlacedRow = tuple[str, dict[str, Any]]
"""The place of a row, such as "'p.jsonl' line 3", and the row."""
RowPlace = Callable[[int], str]
"""The place of the row with an index, for messages."""

_HALF = re.compile(r"[\ud800-\udfff]")
_HALF_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")


def row_of(name: str) -> RowPlace:
    """Places such as "row 3 of train_dataset", for rows without files."""
    return lambda index: f"row {index} of {name}"


class Written(float):
    """A number that knows the text it was read from, such as 1.50, for columns that are kept as text."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str | float) -> Written:
        number = super().__new__(cls, text)
        number.text = str(text)
        return number


def _number(text: str) -> float:
    number = float(text)
    return number if repr(number) == text else Written(text)


_parse = json.JSONDecoder(parse_float=_number).decode  # json.loads would make a decoder for each row


def read_text_rows(path: Path, options: Mapping[str, Any]) -> Iterator[PlacedRow]:
    """Yield the rows of a JSON or CSV file. Values of a CSV file are all text.

    Raises:
        DataError: the file cannot be read, or is malformed; names the line, or the row of a JSON list.
        ConfigurationError: an option has a value that cannot be used.
    """
    text = _decoded(path, read_bytes(path), options.get("encoding"))
    return _csv(path, text, options) if KINDS[suffix(path)] == CSV else _json(path, text, options.get("field"))


def _decoded(path: Path, data: bytes, encoding: str | None) -> str:
    try:
        return data.decode(encoding or "utf-8").removeprefix("\ufeff")
    except (LookupError, TypeError) as error:
        raise ConfigurationError(f"unknown encoding {encoding!r} of '{path}'; use one such as utf-8") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        likely = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "latin-1"
        raise DataError(
            f"'{path}' line {line} is not {error.encoding.upper()} text: {error.reason} at byte {error.start}; save it "
            f"as UTF-8, or set its encoding, such as dataset_options={{encoding: {likely}}}"
        ) from error


def _json(path: Path, text: str, field: str | None) -> Iterator[PlacedRow]:
    if field is not None or suffix(path) == ".json" or text.lstrip().startswith("["):
        try:
            value = _parse(text)
        except json.JSONDecodeError as error:
            # Values one after the other, each on its own line: JSON lines under another name.
            if field is not None or error.msg != "Extra data" or not text[: error.pos].endswith("\n"):
                where = f"line {error.lineno}, column {error.colno}"
                raise DataError(f"'{path}' is not valid JSON: {error.msg} ({where})") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"'{path}' cannot be read as JSON: {first_line(error)}") from error
        else:
            may_be_cut = _HALF_ESCAPED.search(text) is not None
            for index, row in enumerate(_list_in(value, path, field)):
                yield _checked(row, f"'{path}' row {index}", may_be_cut)
            return
    name = f"'{path}'"
    for number, line in enumerate(io.StringIO(text, newline="\n"), 1):
        if not line.isspace():
            where = f"{name} line {number}"
            yield _checked(_line(line, where), where, "\\u" in line)


def _line(line: str, where: str) -> Any:
    try:
        return _parse(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not valid JSON: {error.msg} (column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number of too many digits, too many brackets
        raise DataError(f"{where} cannot be read as JSON: {first_line(error)}") from error


def _list_in(value: Any, path: Path, field: str | None) -> list[Any]:
    """The rows of a document: the list that it is, or the one list of objects in it."""
    if isinstance(value, list) and field is None:
        return value
    lists = {
        name: entry
        for name, entry in (value.items() if isinstance(value, dict) else ())
        if isinstance(entry, list) and entry and all(isinstance(row, dict) for row in entry)
    }
    if field is not None and field not in lists:
        found = f"it has: {', '.join(lists)}" if lists else "it has none"
        raise DataError(f"'{path}' has no list of objects in the field '{field}'; {found}")
    if field is None and len(lists) > 1:
        raise DataError(
            f"'{path}' has several lists of objects: {', '.join(lists)}; choose one, such as "
            f"dataset_options={{field: {next(iter(lists))}}}"
        )
    if not lists:
        raise DataError(
            f"'{path}' must be a list of objects, or have one object on each line; pandas writes such files with "
            "df.to_json(path, orient='records')"
        )
    return lists[field] if field is not None else next(iter(lists.values()))


def _checked(row: Any, where: str, may_be_cut: bool) -> PlacedRow:
    if not isinstance(row, dict):
        raise DataError(f'{where} must be an object such as {{"prompt": "..."}}, not {type(row).__name__}')
    for name, value in row.items() if may_be_cut else ():
        half = _HALF.search(name) or _HALF.search(
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        )
        if half:
            raise DataError(
                f"{where} has an unpaired surrogate at position {half.start()} of {name!a} (half a character, as in "
                "an emoji cut in two)"
            )
    return where, row


def _csv(path: Path, text: str, options: Mapping[str, Any]) -> Iterator[PlacedRow]:
    csv.field_size_limit(2**31 - 1)  # by default, a text of more than 131,072 characters is an error
    try:
        reader = csv.reader(
            io.StringIO(text, newline=""),
            strict=True,
            delimiter=options.get("delimiter") or _delimiter(path, text),
            quotechar=options.get("quotechar", '"'),
        )
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"the options of '{path}' cannot be used: {first_line(error)}") from error
    records = _records(path, reader)
    names = options.get("column_names")
    if names is not None and not isinstance(names, list):
        raise ConfigurationError(f"column_names of '{path}' must be a list, not {names!r}")
    names = names or _header(path, *next(records, ("", [])))
    for where, values in records:
        if len(values) != len(names):
            raise DataError(
                f"{where} has {counted(len(values), 'value')}, but there are {counted(len(names), 'column')}: "
                f"{', '.join(names)}; put values that contain the delimiter or a line break in double quotes"
            )
        yield where, dict(zip(names, values))


def _delimiter(path: Path, text: str) -> str:
    """Tabs in .tsv files; otherwise commas, unless the header has none of them but semicolons or tabs."""
    found = re.match(r"\s*(.*)", text)
    header = found[1] if found else ""
    likely = [sign for sign in ",;\t" if sign in header]
    return "\t" if suffix(path) == ".tsv" else next(iter(likely), ",")


def _records(path: Path, reader: Any) -> Iterator[tuple[str, list[str]]]:
    """The records that are not empty, each with the line that it begins on."""
    while True:
        where = f"'{path}' line {reader.line_num + 1}"
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            last = reader.line_num
            raise DataError(
                f"{where} is not valid CSV: {first_line(error)} (line {last}); a quote is not closed or not doubled"
            ) from error
        if values:
            yield where, values


def _header(path: Path, where: str, names: list[str]) -> list[str]:
    """The names of the columns; the place of one without a name, such as the index of pandas."""
    stripped = [name.strip() or f"column {number}" for number, name in enumerate(names, 1)]
    twice = next((name for name in stripped if stripped.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{where} names the column '{twice}' twice; rename one")
    return stripped

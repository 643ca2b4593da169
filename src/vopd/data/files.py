"""Reads local .jsonl, .json and .parquet files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vopd.errors import DataError, first_line, require

SUFFIXES = (".jsonl", ".json", ".parquet")


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a local .jsonl, .json or .parquet file as dictionaries.

    Raises:
        DataError: the file is missing, unreadable, of another type, or malformed; names the line of a .jsonl file.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no file '{path}'")
    if path.suffix not in SUFFIXES:
        raise DataError(f"'{path}' has an unsupported file type; use .jsonl, .json or .parquet")
    try:
        return _read_parquet(path) if path.suffix == ".parquet" else _read_json(path)
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror or error}; check its permissions") from error


def _read_json(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if path.suffix == ".jsonl":
        return [_row(line, f"'{path}' line {n}") for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    rows = _parse(text, f"'{path}'")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"'{path}' must be a list of objects; for one object per line, name the file .jsonl")
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    parquet = require("pyarrow.parquet", "train")
    with path.open("rb") as file:  # so that a missing permission is reported as such
        try:
            return list(parquet.read_table(file).to_pylist())
        except (OSError, ValueError) as error:  # pyarrow raises either
            raise DataError(f"'{path}' is not a readable parquet file: {first_line(error)}") from error


def _parse(text: str, where: str, place: str = "line {0.lineno}, column {0.colno}") -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not valid JSON: {error.msg} ({place.format(error)})") from error


def _row(line: str, where: str) -> dict[str, Any]:
    row = _parse(line, where, "column {0.colno}")
    if not isinstance(row, dict):
        raise DataError(f'{where} must be an object such as {{"prompt": "..."}}, not {type(row).__name__}')
    return row

"""Readers of the files in a run folder.

metrics.jsonl has one JSON object per logged step, samples.jsonl one per kept completion, guards.jsonl one each time
that a guard fired. measured.json holds what a comparison measured after the run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vopd.errors import DataError

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
GUARDS_FILE = "guards.jsonl"
# Written once training has ended and the model is saved.
STATE_FILE = "trainer_state.json"
MEASURED_FILE = "measured.json"


def read_text(path: Path) -> str:
    """Return a file's text; bytes that are not UTF-8 become replacement characters.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; give a run directory that vopd wrote") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if there is no such file.

    Raises:
        DataError: it cannot be read, or is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is not a JSON object; it is not a file that vopd wrote")
    return found


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Return the records of a metrics.jsonl, or of the run folder that holds one, in the order written.

    An incomplete last line (the run is still writing it, or was killed) is skipped.

    Raises:
        DataError: there is no such file, or a line before the last is not a JSON object.
    """
    path = Path(path)
    path = path / METRICS_FILE if path.is_dir() else path
    lines = read_text(path).split("\n")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record, fault = json.loads(line), "a JSON object"
        except json.JSONDecodeError as error:
            record, fault = None, f"valid JSON: {error.msg}"
        if isinstance(record, dict):
            records.append(record)
        # A complete file ends in a line break, so its last piece is empty; otherwise that piece is half a record.
        elif line.strip() and number < len(lines):
            raise DataError(f"{path} line {number} is not {fault}; remove the line")
    return records


def read_records(path: Path) -> list[dict[str, Any]]:
    """As `read_metrics`, but an empty list if there is no such file."""
    return read_metrics(path) if path.is_file() else []


def series(records: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Return the steps at which the metric `name` was logged, and its values; both empty if it never was.

    Skips values that are not finite. If a step has two records (training and an evaluation), the later one wins.
    """
    points: dict[int, float] = {}
    for record in records:
        value = record.get(name)
        if isinstance(value, int | float) and math.isfinite(value) and isinstance(record.get("step"), int):
            points[record["step"]] = float(value)
    steps = sorted(points)
    return steps, [points[step] for step in steps]


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """Return the centered running mean over `width` values; the window is narrower at both ends."""
    half = width // 2
    windows = (values[max(0, index - half) : index + half + 1] for index in range(len(values)))
    return [sum(window) / len(window) for window in windows]

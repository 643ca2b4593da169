"""Accuracy on benchmarks, with intervals, during training and by checkpoint."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .colours import SERIES
from .figures import Curves, Figure, Line
from .png import write_png

_ACCURACY = re.compile(r"eval_(.+)_avg@(\d+)")
# By label and place: a share and the ends of its interval.
_Scores = dict[str, dict[int, list[Any]]]


def training_accuracy(records: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Accuracy on each benchmark over the steps, from a run's metrics; empty if none was measured."""
    scores: _Scores = {}
    for record in records:
        for name in record:
            parts = [record.get(key) for key in ("step", name, f"{name}_low", f"{name}_high")]
            if (match := _ACCURACY.fullmatch(name)) and all(isinstance(part, int | float) for part in parts):
                scores.setdefault(f"{match[1]}, avg@{match[2]}", {})[record["step"]] = parts[1:]
    return [_figure(scores, "%")] if scores else []


def draw_accuracy(results: Mapping[str, Any], path: str | Path) -> None:
    """Draw avg@k of every benchmark over the checkpoints of an evaluation as a .png, .svg or .pdf.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows = results["results"]
    checkpoints = list(dict.fromkeys(row["checkpoint"] for row in rows))
    problems: dict[str, int] = {}
    scores: _Scores = {}
    for row in rows:
        label = f"{row['benchmark']}, n = {problems.setdefault(row['benchmark'], row['problems'])}"
        place = checkpoints.index(row["checkpoint"])
        scores.setdefault(label, {})[place] = [row["avg_at_k"][part] for part in ("value", "low", "high")]
    figure = _figure(scores, "avg@k, %, 95 % interval")
    write_png([replace(figure, axis="checkpoint", places=checkpoints)], path)


def _figure(scores: _Scores, unit: str) -> Curves:
    lines = []
    for (label, found), colour in zip(scores.items(), itertools.cycle(SERIES)):
        places = sorted(found)
        values, lows, highs = zip(*([100 * part for part in found[place]] for place in places))
        lines.append(Line(label, places, values, colour, ends=list(zip(lows, highs))))
    return Curves("accuracy", "Accuracy on benchmarks", unit, lines, from_zero=False)

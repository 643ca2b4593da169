"""Figures as data: the page, the PNG and the CSV of a figure are all drawn from one object."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .run_files import smoothed

# Points per line on a page; the CSV has them all.
_SHOWN_POINTS = 300


@dataclass(frozen=True)
class Line:
    """One curve: its points by optimizer step, or by the number of their place.

    `width` is the number of steps of the running mean that is drawn; 1 draws the values as they are. Lines of the same
    label share one entry of the legend. `band` holds (low, high) at every step, the range of several seeds say, and is
    drawn around the line. `ends` are the 95 % intervals of the values, where they have any: then every value is drawn
    as a point with its interval.
    """

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    colour: str
    width: int = 1
    dashed: bool = False
    band: Sequence[tuple[float, float]] = ()
    ends: Sequence[tuple[float, float]] = ()

    def points(self) -> list[tuple[float, float]]:
        """(step, value) as drawn: smoothed, and averaged in bins where there are more than a page needs."""
        return self._drawn(self.values)

    def edges(self) -> list[list[tuple[float, float]]]:
        """The band's lower and upper edge as drawn; none without a band."""
        return [self._drawn(edge) for edge in zip(*self.band, strict=True)]

    def _drawn(self, values: Sequence[float]) -> list[tuple[float, float]]:
        points = list(zip(self.steps, smoothed(values, self.width), strict=True))
        size = -(-len(points) // _SHOWN_POINTS)
        if size <= 1:
            return points
        bins = (points[start : start + size] for start in range(0, len(points), size))
        return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in bins]


@dataclass(frozen=True)
class Curves:
    """Curves over the optimizer step, or over named `places`, of which a line's steps are the numbers.

    `remark` says what the quantity is; `from_zero` shows 0 on the vertical axis; `marks` are (name, height) of lines
    across the figure.
    """

    name: str
    title: str
    unit: str
    lines: Sequence[Line]
    remark: str = ""
    from_zero: bool = True
    axis: str = "optimizer step"
    places: Sequence[str] = ()
    marks: Sequence[tuple[str, float]] = ()

    @property
    def note(self) -> str:
        """The remark, and how far the lines are smoothed."""
        widest = max(line.width for line in self.lines)
        smoothing = f"Running mean over {widest} logged steps." if widest > 1 else ""
        return f"{self.remark} {smoothing}".strip()

    def csv(self) -> str:
        """Every value as logged, not smoothed: line,step,value, and low,high where there are intervals or a band."""
        rows: list[tuple[object, ...]] = []
        for line in self.lines:
            around = line.ends or line.band
            for index, (step, value) in enumerate(zip(line.steps, line.values)):
                place = self.places[int(step)] if self.places else step
                rows.append((line.label, place, value, *(around[index] if around else ())))
        header = ("line", "step", "value", "low", "high")
        return _csv(header if any(line.ends or line.band for line in self.lines) else header[:3], rows)


@dataclass(frozen=True)
class Row:
    """A name, the text beside it, and bars laid end to end from 0, each (label, value, colour).

    With `ends`, a 95 % interval, its one value is drawn as a point on a bar from end to end.
    """

    label: str
    text: str
    parts: Sequence[tuple[str, float, str]]
    ends: tuple[float, float] | None = None

    @property
    def total(self) -> float:
        return sum(value for _, value, _ in self.parts)


@dataclass(frozen=True)
class Rows:
    """Rows of bars, or of values with intervals, on one scale. `marks` are (name, value) of lines across all rows.

    What is 0 has no place on a logarithmic scale; its row has the text alone.
    """

    name: str
    title: str
    unit: str
    rows: Sequence[Row]
    note: str = ""
    marks: Sequence[tuple[str, float]] = ()
    logarithmic: bool = False

    def csv(self) -> str:
        if self.intervals:
            rows = ((row.label, row.total, *(row.ends or ())) for row in self.rows)
            return _csv(("row", "value", "low", "high"), rows)
        parts = ((row.label, label, value) for row in self.rows for label, value, _ in row.parts)
        return _csv(("row", "part", "value"), parts)

    @property
    def intervals(self) -> bool:
        return any(row.ends for row in self.rows)

    @property
    def stacked(self) -> bool:
        return any(len(row.parts) > 1 for row in self.rows)

    def has_place(self, row: Row) -> bool:
        return not self.logarithmic or min(row.ends or (row.total,)) > 0

    def along(self, value: float) -> float:
        """Where a value lies on the axis, in the axis' own unit: the value, or its logarithm to the base 10."""
        return math.log10(value) if self.logarithmic else value

    def scale(self) -> tuple[float, float]:
        """Ends of the axis, in its own unit: 0 and the longest bar; or all intervals and marks, with some room."""
        if not self.intervals:
            return 0.0, max((row.total for row in self.rows), default=0.0) or 1.0
        found = [end for row in self.rows if self.has_place(row) for end in row.ends or ()]
        ends = [self.along(end) for end in (*found, *(value for _, value in self.marks))] or [0.0]
        room = 0.06 * (max(ends) - min(ends)) or abs(max(ends)) or 1.0
        return min(ends) - room, max(ends) + room


Figure = Curves | Rows


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()

"""Figures as data: what the page, the PNG and the CSV of one figure are all drawn from."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from .run_files import smoothed

# Points of a line that a page holds; the CSV has them all.
_SHOWN_POINTS = 300


@dataclass(frozen=True)
class Line:
    """One curve: its points by optimizer step.

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

    def with_ends(self) -> list[tuple[float, float, tuple[float, float]]]:
        """(step, value, interval) of every value that has one."""
        return list(zip(self.steps, self.values, self.ends, strict=True)) if self.ends else []

    def points(self) -> list[tuple[float, float]]:
        """(step, value) as drawn: smoothed, and averaged in bins where there are more than a page needs."""
        return self._drawn(self.values)

    def edges(self) -> tuple[list[tuple[float, float]], list[tuple[float, float]]] | None:
        """The band's lower and upper edge as drawn, or None without one."""
        if not self.band:
            return None
        low, high = zip(*self.band, strict=True)
        return self._drawn(low), self._drawn(high)

    def _drawn(self, values: Sequence[float]) -> list[tuple[float, float]]:
        points = list(zip(self.steps, smoothed(values, self.width), strict=True))
        size = -(-len(points) // _SHOWN_POINTS)
        if size <= 1:
            return points
        bins = (points[start : start + size] for start in range(0, len(points), size))
        return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in bins]


@dataclass(frozen=True)
class Curves:
    """Curves over the optimizer step. `note` says what the quantity is; `from_zero` shows 0 on the vertical axis."""

    name: str
    title: str
    unit: str
    lines: Sequence[Line]
    note: str = ""
    from_zero: bool = True

    def csv(self) -> str:
        """Every value as logged, not smoothed: line,step,value, and low,high where there are intervals or a band."""
        rows: list[tuple[object, ...]] = []
        for line in self.lines:
            around = line.ends or line.band
            for place, (step, value) in enumerate(zip(line.steps, line.values)):
                rows.append((line.label, step, value, *(around[place] if around else ())))
        header = ("line", "step", "value", "low", "high")
        return _csv(header if any(line.ends or line.band for line in self.lines) else header[:3], rows)


@dataclass(frozen=True)
class Bar:
    """One row: parts laid end to end, each (label, value, colour), and the text beside them."""

    label: str
    parts: Sequence[tuple[str, float, str]]
    text: str

    @property
    def total(self) -> float:
        return sum(value for _, value, _ in self.parts)


@dataclass(frozen=True)
class Bars:
    """Rows of bars on one scale that begins at 0."""

    name: str
    title: str
    unit: str
    rows: Sequence[Bar]
    note: str = ""

    def csv(self) -> str:
        rows = [(row.label, label, value) for row in self.rows for label, value, _ in row.parts]
        return _csv(("row", "part", "value"), rows)


@dataclass(frozen=True)
class Dot:
    """One measured value with its 95 % interval."""

    label: str
    value: float
    low: float
    high: float
    colour: str
    text: str


@dataclass(frozen=True)
class Dots:
    """Rows of values with intervals on one scale."""

    name: str
    title: str
    unit: str
    rows: Sequence[Dot]
    note: str = ""
    marks: Sequence[tuple[str, float]] = field(default_factory=tuple)

    def csv(self) -> str:
        return _csv(("row", "value", "low", "high"), [(row.label, row.value, row.low, row.high) for row in self.rows])

    def scale(self) -> tuple[float, float]:
        """Ends of the axis: all values, intervals and marks, with some room."""
        ends = [end for row in self.rows for end in (row.low, row.high)] + [value for _, value in self.marks]
        room = 0.06 * (max(ends) - min(ends)) or abs(max(ends)) or 1.0
        return min(ends) - room, max(ends) + room


Figure = Curves | Bars | Dots


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()

"""Figures as markup: curves as inline SVG, bars and intervals as boxes that adapt to the screen width."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .figures import Curves, Figure, Line, Rows
from .page import escape

_WIDTH, _HEIGHT = 360, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 350, 10, 182
# Space below for slanted place names.
_PLACES = 58


def figures_html(figures: Sequence[Figure], absent: str = "") -> str:
    """All figures in a grid with as many columns as fit; without figures a line that says why."""
    if not figures:
        return f'<p class="note">Nothing to show: {absent}.</p>' if absent else ""
    return f'<div class="figures">\n{"".join(map(_figure_html, figures))}</div>'


def _figure_html(figure: Figure) -> str:
    """One figure with its title, unit and note."""
    if isinstance(figure, Curves):
        body = _legend((line.label, line.colour, line.dashed) for line in figure.lines) + _svg(figure)
    else:
        body = _rows(figure)
    note = f"<p>{escape(figure.note)}</p>" if figure.note else ""
    caption = f'<figcaption><h3>{escape(figure.title)}</h3><p class="unit">{escape(figure.unit)}</p></figcaption>'
    return f'<figure id="{escape(figure.name)}">{caption}{body}{note}</figure>\n'


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers from low to high: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class _Frame:
    """Ends of both axes, in values, and where a value lies between them, in the units of the SVG."""

    left: float
    right: float
    low: float
    high: float

    def across(self, x: float) -> float:
        return _LEFT + (x - self.left) / (self.right - self.left) * (_RIGHT - _LEFT)

    def up(self, y: float) -> float:
        return _BOTTOM - (y - self.low) / (self.high - self.low) * (_BOTTOM - _TOP)

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self.across(x):.1f},{self.up(y):.1f}" for x, y in points)


def _frame(figure: Curves) -> _Frame:
    """The frame around all that is drawn; never empty."""
    points = [point for line in figure.lines for part in (line.points(), *line.edges()) for point in part]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    heights = [y for _, y in points] + [y for line in figure.lines for ends in line.ends for y in ends]
    heights += [value for _, value in figure.marks] + ([0.0] if figure.from_zero else [])
    low, high = min(heights), max(heights)
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - (0.0 if low == 0 else abs(low) / 2), high + (abs(high) / 2 or 1.0)
    room = 0.05 * (high - low)
    # A quantity that touches 0 stands on the axis.
    return _Frame(left, right if right > left else left + 1, low if low == 0 else low - room, high + room)


def _svg(figure: Curves) -> str:
    frame = _frame(figure)
    parts = _axes(figure, frame)
    for line in figure.lines:
        if line.band:
            low, high = line.edges()
            path = frame.path([*low, *reversed(high)])
            parts.append(f'<polygon style="--c:{line.colour}" points="{path}"/>')
    parts += [_level("mark", frame.up(value), f"<title>{escape(name)}</title>") for name, value in figure.marks]
    parts += [_drawn(line, frame) for line in figure.lines]
    cross = f'<line class="cross" x1="0" x2="0" y1="{_TOP}" y2="{_BOTTOM}" visibility="hidden"/>'
    data = escape(json.dumps(_data(figure, frame), separators=(",", ":")))
    label = escape(f"{figure.title}, {figure.unit}, over {figure.axis}")
    height = _HEIGHT + (_PLACES if figure.places else 0)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{label}" data-chart="{data}">'
        f"{''.join(parts)}{cross}</svg>"
    )


def _axes(figure: Curves, frame: _Frame) -> list[str]:
    parts = []
    for value in ticks(frame.low, frame.high):
        y = frame.up(value)
        parts.append(_level("grid", y))
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    steps = [step for step in ticks(frame.left, frame.right) if step == int(step)]
    labels: dict[float, str] = dict(enumerate(figure.places)) or {step: str(int(step)) for step in steps}
    kind, turn, anchor = ("place", " rotate(-60)", "end") if figure.places else ("step", "", "middle")
    for x, label in labels.items():
        place = f"translate({frame.across(x):.1f} {_BOTTOM + 17}){turn}"
        parts.append(f'<text class="{kind}" transform="{place}" text-anchor="{anchor}">{escape(label)}</text>')
    return parts


def _level(kind: str, y: float, title: str = "") -> str:
    return f'<line class="{kind}" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}">{title}</line>'


def _drawn(line: Line, frame: _Frame) -> str:
    """The curve; values with intervals, and one that is alone, as points, each on a bar from end to end."""
    style = f'style="--c:{line.colour}"'
    points = line.points()
    shapes = [(points, "dashed" if line.dashed or line.ends else "")] if len(points) > 1 else []
    shapes += [([(step, low), (step, high)], "") for step, (low, high) in zip(line.steps, line.ends)]
    circles = points if line.ends or len(points) == 1 else []
    return "".join(
        [f'<polyline {style} class="{kind}" points="{frame.path(shape)}"/>' for shape, kind in shapes]
        + [f'<circle {style} cx="{frame.across(x):.1f}" cy="{frame.up(y):.1f}" r="3"/>' for x, y in circles]
    )


def _data(figure: Curves, frame: _Frame) -> dict[str, object]:
    """What the page's script needs to read values off the curves."""
    lines = [
        {"label": line.label, "points": [[round(x, 1), float(f"{y:.5g}")] for x, y in line.points()]}
        for line in figure.lines
    ]
    return {
        "lines": lines, "places": figure.places, "from": frame.left, "to": frame.right, "left": _LEFT, "right": _RIGHT,
        "width": _WIDTH, "reach": (frame.right - frame.left) / 25,
    }  # fmt: skip


def _legend(entries: Iterable[tuple[str, str, bool]]) -> str:
    """One entry a label: (label, colour, whether the line is dashed)."""
    shown = "".join(
        f'<span><i style="--c:{colour}"{" class=dashed" if dashed else ""}></i>{escape(label)}</span>'
        for label, (colour, dashed) in {label: rest for label, *rest in entries}.items()
    )
    return f'<div class="legend">{shown}</div>'


def _rows(figure: Rows) -> str:
    low, high = figure.scale()

    def across(value: float) -> float:
        return 100 * (figure.along(value) - low) / (high - low)

    parts = [(label, colour, False) for row in figure.rows for label, _, colour in row.parts]
    marks = "".join(f'<s style="left:{across(value):.2f}%" title="{escape(name)}"></s>' for name, value in figure.marks)
    rows = []
    for row in figure.rows:
        track = marks
        for _, value, colour in row.parts if figure.has_place(row) else ():
            style = f"--c:{colour};"
            if row.ends is None:
                track += f'<i style="{style}width:{across(value):.2f}%"></i>'
            else:
                start, end = map(across, row.ends)
                track += f'<i style="{style}left:{start:.2f}%;width:{end - start:.2f}%"></i>'
                track += f'<u style="{style}left:{across(value):.2f}%"></u>'
        name = f'<div class="name"><span>{escape(row.label)}</span><b>{escape(row.text)}</b></div>'
        rows.append(f'<div>{name}<div class="track">{track}</div></div>')
    kind = " dots" if figure.intervals else ""
    return f'{_legend(parts) if figure.stacked else ""}<div class="bars{kind}">{"".join(rows)}</div>'


def _short(value: float) -> str:
    """A tick in few characters."""
    if value == 0 or abs(value) < 1e-12:
        return "0"
    return f"{value:.4g}"

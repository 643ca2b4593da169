"""Figures as markup: curves as inline SVG, bars and intervals as boxes that follow the width of the screen."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

from .figures import Bars, Curves, Dots, Figure, Line
from .page import escape

_WIDTH, _HEIGHT = 360, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 350, 10, 182


def figures_html(figures: Sequence[Figure]) -> str:
    """All figures in a grid of as many columns as the screen has room for."""
    return f'<div class="figures">\n{"".join(figure_html(figure) for figure in figures)}</div>'


def figure_html(figure: Figure) -> str:
    """One figure with its title, its unit and what it shows."""
    if isinstance(figure, Curves):
        body = _legend(figure.lines) + _svg(figure)
    elif isinstance(figure, Bars):
        body = _bars(figure)
    else:
        body = _dots(figure)
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


def _bounds(figure: Curves) -> tuple[float, float, float, float]:
    """Ends of both axes; never empty."""
    points = [point for line in figure.lines for part in (line.points(), *(line.edges() or ())) for point in part]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    heights = [y for _, y in points] + [y for line in figure.lines for ends in line.ends for y in ends]
    low, high = min(heights), max(heights)
    if figure.from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - (0.0 if low == 0 else abs(low) / 2), high + (abs(high) / 2 or 1.0)
    room = 0.05 * (high - low)
    # A quantity that touches 0 stands on the axis.
    return left, right if right > left else left + 1, low if low == 0 else low - room, high + room


def _svg(figure: Curves) -> str:
    left, right, low, high = _bounds(figure)

    def across(x: float) -> float:
        return _LEFT + (x - left) / (right - left) * (_RIGHT - _LEFT)

    def up(y: float) -> float:
        return _BOTTOM - (y - low) / (high - low) * (_BOTTOM - _TOP)

    parts = []
    for value in ticks(low, high):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{up(value):.1f}" y2="{up(value):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{up(value) + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    for value in ticks(left, right):
        if value == int(value):
            parts.append(f'<text x="{across(value):.1f}" y="{_BOTTOM + 17}" text-anchor="middle">{int(value)}</text>')
    for line in figure.lines:
        parts.append(_band(line, across, up))
    for line in figure.lines:
        parts.append(_drawn(line, across, up))
    cross = f'<line class="cross" x1="0" x2="0" y1="{_TOP}" y2="{_BOTTOM}" visibility="hidden"/>'
    data = escape(json.dumps(_data(figure, left, right), separators=(",", ":")))
    label = escape(f"{figure.title}, {figure.unit}, over optimizer steps")
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}" data-chart="{data}">'
        f"{''.join(parts)}{cross}</svg>"
    )


def _drawn(line: Line, across: Callable[[float], float], up: Callable[[float], float]) -> str:
    style = f'style="--c:{line.colour}"'
    points = line.points()
    path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
    if line.ends:
        return _with_intervals(line, across, up)
    if len(points) == 1:
        return f'<circle {style} cx="{across(points[0][0]):.1f}" cy="{up(points[0][1]):.1f}" r="3"/>'
    return f'<polyline {style} class="{"dashed" if line.dashed else ""}" points="{path}"/>'


def _band(line: Line, across: Callable[[float], float], up: Callable[[float], float]) -> str:
    edges = line.edges()
    if edges is None:
        return ""
    low, high = edges
    path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in [*low, *reversed(high)])
    return f'<polygon style="--c:{line.colour}" points="{path}"/>'


def _with_intervals(line: Line, across: Callable[[float], float], up: Callable[[float], float]) -> str:
    """The values as points on a line, each on a bar from end to end of its interval."""
    style = f'style="--c:{line.colour}"'
    places = [(across(step), up(value), up(low), up(high)) for step, value, (low, high) in line.with_ends()]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in places)
    marks = "".join(
        f'<polyline {style} points="{x:.1f},{low:.1f} {x:.1f},{high:.1f}"/>'
        f'<circle {style} cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
        for x, y, low, high in places
    )
    return f'<polyline {style} class="dashed" points="{path}"/>{marks}'


def _data(figure: Curves, left: float, right: float) -> dict[str, object]:
    """What the page's script needs to read values off the curves."""
    lines = [
        {"label": line.label, "points": [[round(x, 1), float(f"{y:.5g}")] for x, y in line.points()]}
        for line in figure.lines
    ]
    return {
        "lines": lines, "from": left, "to": right, "left": _LEFT, "right": _RIGHT, "width": _WIDTH,
        "reach": (right - left) / 25,
    }  # fmt: skip


def _legend(lines: Sequence[Line]) -> str:
    entries = {line.label: line for line in lines}
    return '<div class="legend">' + "".join(
        f'<span><i style="--c:{line.colour}"{" class=dashed" if line.dashed else ""}></i>{escape(label)}</span>'
        for label, line in entries.items()
    ) + "</div>"  # fmt: skip


def _bars(figure: Bars) -> str:
    largest = max((row.total for row in figure.rows), default=0.0) or 1.0
    colours = {label: colour for row in figure.rows for label, _, colour in row.parts}
    legend = "".join(f'<span><i style="--c:{colour}"></i>{escape(name)}</span>' for name, colour in colours.items())
    legend = f'<div class="legend">{legend}</div>' if any(len(row.parts) > 1 for row in figure.rows) else ""
    rows = []
    for row in figure.rows:
        parts = "".join(
            f'<i style="--c:{colour};width:{100 * value / largest:.2f}%"></i>' for _, value, colour in row.parts
        )
        rows.append(_row(row.label, row.text, parts))
    return f'{legend}<div class="bars">{"".join(rows)}</div>'


def _dots(figure: Dots) -> str:
    low, high = figure.scale()

    def across(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    marks = "".join(f'<s style="left:{across(value)}" title="{escape(name)}"></s>' for name, value in figure.marks)
    rows = []
    for row in figure.rows:
        width = f"{100 * (row.high - row.low) / (high - low):.2f}%"
        parts = (
            f'{marks}<i style="--c:{row.colour};left:{across(row.low)};width:{width}"></i>'
            f'<u style="--c:{row.colour};left:{across(row.value)}"></u>'
        )
        rows.append(_row(row.label, row.text, parts))
    return f'<div class="bars dots">{"".join(rows)}</div>'


def _row(label: str, text: str, parts: str) -> str:
    return (
        f'<div><div class="name"><span>{escape(label)}</span><b>{escape(text)}</b></div>'
        f'<div class="track">{parts}</div></div>'
    )


def _short(value: float) -> str:
    """A tick in few characters."""
    if value == 0 or abs(value) < 1e-12:
        return "0"
    return f"{value:.0e}" if abs(value) < 1e-3 or abs(value) >= 1e5 else f"{value:.4g}"

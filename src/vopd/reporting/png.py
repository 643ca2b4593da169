"""Figures as the panels of PNG files, drawn without a display. Needs matplotlib (the extra `report`)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vopd.errors import require

from .figures import Bars, Curves, Dots, Figure

STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
}
_MARK = {"color": "#777777", "linestyle": "--", "linewidth": 1}
# Curves of at most so many points show them.
_FEW = 12


def write_png(figures: Sequence[Figure], path: str | Path, title: str = "") -> None:
    """Draw figures into one file, a panel each, under a common title and with one legend.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with require("matplotlib", "report").rc_context(STYLE):
        panels(figures, title).savefig(path, dpi=130)


def panels(figures: Sequence[Figure], title: str = "") -> Any:
    """The matplotlib figure of `write_png`. It leaves pyplot and its backend, which are the caller's, alone."""
    columns = 2 if len(figures) == 4 else min(len(figures), 3)
    rows = -(-len(figures) // columns)
    sheet = require("matplotlib.figure", "report").Figure((6.4 * columns, 4 * rows), layout="constrained")
    legend = {}
    for number, figure in enumerate(figures, 1):
        axes = sheet.add_subplot(rows, columns, number)
        text = _draw(axes, figure)
        axes.set_title(figure.title)
        axes.set_xlabel("\n".join([text, *textwrap.wrap(figure.note, 70)]))
        # Lines of one label, in one panel or in several, share an entry.
        legend |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
    sheet.suptitle(title)
    if legend:
        sheet.legend(legend.values(), legend, loc="outside lower center", ncols=3 * columns, frameon=False, fontsize=9)
    return sheet


def _draw(axes: Any, figure: Figure) -> str:
    """Draw all but title and note, and return what the horizontal axis shows."""
    if isinstance(figure, Curves):
        _curves(axes, figure)
        return figure.axis
    if isinstance(figure, Bars):
        _bars(axes, figure)
    else:
        _dots(axes, figure)
    axes.set_yticks(range(len(figure.rows)), [row.label for row in figure.rows])
    axes.set_ylim(len(figure.rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    return figure.unit


def _curves(axes: Any, figure: Curves) -> None:
    for line in figure.lines:
        steps, values = zip(*line.points(), strict=True)
        axes.plot(
            steps, values, "--" if line.dashed else "-", color=line.colour, label=line.label,
            marker="o" if len(steps) <= _FEW else None, markersize=4,
        )  # fmt: skip
        if line.band:
            low, high = ([y for _, y in edge] for edge in line.edges())
            axes.fill_between(steps, low, high, color=line.colour, alpha=0.15, linewidth=0)
        for step, ends in zip(line.steps, line.ends):
            axes.plot([step, step], ends, color=line.colour, linewidth=1.6, solid_capstyle="butt")
    for _, value in figure.marks:
        axes.axhline(value, **_MARK)
    if figure.from_zero and all(value >= 0 for line in figure.lines for value in line.values):
        axes.set_ylim(bottom=0)
    if figure.places:
        axes.set_xticks(range(len(figure.places)), figure.places, rotation=20, ha="right", fontsize=9)
    axes.set_ylabel(figure.unit)


def _bars(axes: Any, figure: Bars) -> None:
    stacked = any(len(row.parts) > 1 for row in figure.rows)
    for index, row in enumerate(figure.rows):
        start = 0.0
        for label, value, colour in row.parts:
            axes.barh(index, value, left=start, color=colour, height=0.5, label=label if stacked else None)
            start += value
        _beside(axes, row.text, start, index)
    axes.margins(x=0.12)


def _dots(axes: Any, figure: Dots) -> None:
    low, high = figure.scale()
    if figure.logarithmic:
        axes.set_xscale("log")
        low, high = 10**low, 10**high
    for index, row in enumerate(figure.rows):
        if figure.has_place(row):
            axes.plot([row.low, row.high], [index, index], color=row.colour, linewidth=2.4)
            axes.plot(row.value, index, "o", color=row.colour, markersize=8)
        _beside(axes, row.text, row.high if figure.has_place(row) else low, index)
    for name, value in figure.marks:
        axes.axvline(value, **_MARK)
        axes.annotate(name, (value, 1.0), xycoords=("data", "axes fraction"), va="top", color="#555555")
    axes.set_xlim(low, high)


def _beside(axes: Any, text: str, x: float, row: int) -> None:
    axes.annotate(text, (x, row), xytext=(5, 0), textcoords="offset points", va="center")

"""Figures as the panels of PNG files, drawn without a display. Needs matplotlib (the extra `report`)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vopd.errors import require

from .figures import Curves, Figure, Rows

STYLE: dict[str, Any] = {
    "font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#e6e6e6", "axes.axisbelow": True,
}  # fmt: skip
_MARK = {"color": "#777777", "linestyle": "--", "linewidth": 1}
# Curves of at most so many points show them.
_FEW = 12


def write_png(figures: Sequence[Figure], path: str | Path, title: str = "") -> None:
    """Draw figures into one file, one panel each, with a common title and legend.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with require("matplotlib", "report").rc_context(STYLE):
        panels(figures, title).savefig(path, dpi=130)


def panels(figures: Sequence[Figure], title: str = "") -> Any:
    """The matplotlib figure of `write_png`. Does not touch pyplot or its backend."""
    columns = 2 if len(figures) == 4 else min(len(figures), 3)
    rows = -(-len(figures) // columns)
    sheet = require("matplotlib.figure", "report").Figure((6.4 * columns, 4 * rows), layout="constrained")
    legend: dict[str, Any] = {}
    for number, figure in enumerate(figures, 1):
        axes = sheet.add_subplot(rows, columns, number)
        if isinstance(figure, Curves):
            _curves(axes, figure)
        else:
            _rows(axes, figure)
        axes.set_title(figure.title)
        across = figure.axis if isinstance(figure, Curves) else figure.unit
        axes.set_xlabel("\n".join([across, *textwrap.wrap(figure.note, 70)]))
        # Lines of one label, in one panel or in several, share an entry.
        legend |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
    sheet.suptitle(title)
    if legend:
        sheet.legend(legend.values(), legend, loc="outside lower center", ncols=3 * columns, frameon=False, fontsize=9)
    return sheet


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
            axes.plot([step, step], ends, color=line.colour, marker="_", linewidth=1.6, solid_capstyle="butt")
    for _, value in figure.marks:
        axes.axhline(value, **_MARK)
    if figure.from_zero and all(value >= 0 for line in figure.lines for value in line.values):
        axes.set_ylim(bottom=0)
    if figure.places:
        axes.set_xticks(range(len(figure.places)), figure.places, rotation=20, ha="right", fontsize=9)
    axes.set_ylabel(figure.unit)


def _rows(axes: Any, figure: Rows) -> None:
    low, high = figure.scale()
    if figure.logarithmic:
        axes.set_xscale("log")
        low, high = 10**low, 10**high
    for index, row in enumerate(figure.rows):
        end = low
        for label, value, colour in row.parts if figure.has_place(row) else ():
            if row.ends is None:
                axes.barh(index, value, left=end, color=colour, height=0.5, label=label if figure.stacked else None)
                end += value
            else:
                axes.plot(row.ends, [index, index], color=colour, linewidth=2.4)
                axes.plot(value, index, "o", color=colour, markersize=8)
                end = row.ends[1]
        axes.annotate(row.text, (end, index), xytext=(5, 0), textcoords="offset points", va="center")
    for name, value in figure.marks:
        axes.axvline(value, **_MARK)
        axes.annotate(name, (value, 1.0), xycoords=("data", "axes fraction"), va="top", color="#555555")
    axes.set_xlim(low, high)
    axes.set_yticks(range(len(figure.rows)), [row.label for row in figure.rows])
    axes.set_ylim(len(figure.rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")

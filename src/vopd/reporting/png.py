"""Figures as PNG files, drawn without a display. Needs matplotlib (the extra `report`)."""

from __future__ import annotations

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


def write_pngs(figures: Sequence[Figure], folder: Path) -> None:
    """Draw each figure into `folder`/NAME.png.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", "report").use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        for figure in figures:
            sheet, axes = pyplot.subplots(figsize=(6.4, 4), layout="constrained")
            _draw(axes, figure)
            axes.set_title(figure.title)
            sheet.savefig(folder / f"{figure.name}.png", dpi=130)
            pyplot.close(sheet)


def _draw(axes: Any, figure: Figure) -> None:
    if isinstance(figure, Curves):
        _curves(axes, figure)
    elif isinstance(figure, Bars):
        _bars(axes, figure)
    else:
        _dots(axes, figure)


def _curves(axes: Any, figure: Curves) -> None:
    labels: set[str] = set()
    for line in figure.lines:
        steps, values = zip(*line.points(), strict=True)
        axes.plot(
            steps, values, "--" if line.dashed else "-", color=line.colour, marker="o" if len(steps) == 1 else None,
            label=None if line.label in labels else line.label,
        )  # fmt: skip
        labels.add(line.label)
        if (edges := line.edges()) is not None:
            low, high = ([y for _, y in edge] for edge in edges)
            axes.fill_between(steps, low, high, color=line.colour, alpha=0.15, linewidth=0)
        for step, value, ends in line.with_ends():
            axes.plot([step, step], ends, color=line.colour, linewidth=1.6, solid_capstyle="butt")
            axes.plot(step, value, "o", color=line.colour, markersize=5)
    if figure.from_zero and all(value >= 0 for line in figure.lines for value in line.values):
        axes.set_ylim(bottom=0)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(figure.unit)
    axes.legend(frameon=False, fontsize=9)


def _bars(axes: Any, figure: Bars) -> None:
    named: set[str] = set()
    several = any(len(row.parts) > 1 for row in figure.rows)
    for index, row in enumerate(figure.rows):
        start = 0.0
        for label, value, colour in row.parts:
            axes.barh(index, value, left=start, color=colour, height=0.5, label=None if label in named else label)
            named.add(label)
            start += value
        axes.annotate(row.text, (start, index), xytext=(5, 0), textcoords="offset points", va="center")
    _rows(axes, [row.label for row in figure.rows])
    axes.margins(x=0.18)
    axes.set_xlabel(figure.unit)
    if several:
        axes.legend(frameon=False, fontsize=9)


def _dots(axes: Any, figure: Dots) -> None:
    for index, row in enumerate(figure.rows):
        axes.plot([row.low, row.high], [index, index], color=row.colour, linewidth=2.4)
        axes.plot(row.value, index, "o", color=row.colour, markersize=8)
    for name, value in figure.marks:
        axes.axvline(value, color="#777777", linestyle="--", linewidth=1)
        axes.annotate(name, (value, 1.0), xycoords=("data", "axes fraction"), va="top", color="#555555")
    _rows(axes, [row.label for row in figure.rows])
    axes.set_xlim(*figure.scale())
    axes.set_xlabel(figure.unit)


def _rows(axes: Any, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")

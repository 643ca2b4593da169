"""Several seeds as one curve: their mean, and their range around it."""

from __future__ import annotations

from collections.abc import Sequence

from .figures import Line
from .plots import colour_of

Points = tuple[Sequence[float], Sequence[float]]


def seed_lines(found: Sequence[tuple[str, Points]], width: int = 1) -> list[Line]:
    """One line a name: the mean of its curves with their range as band, or the curve itself where there is one.

    Curves without points, of runs that broke off, are left out. The mean is over the steps that all others have.

    Args:
        found: (name, (steps, values)) of every run.
        width: steps of the running mean that is drawn.
    """
    lines = []
    rates: dict[str, int] = {}
    for name in dict.fromkeys(name for name, _ in found):
        curves = [dict(zip(*points, strict=True)) for other, points in found if other == name and len(points[0])]
        if not curves:
            continue
        # Learning rates of one estimator share its colour; those after the first are dashed.
        place = rates[name.split(" ")[0]] = rates.get(name.split(" ")[0], 0) + 1
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        columns = [[curve[step] for curve in curves] for step in steps]
        means = [sum(column) / len(column) for column in columns]
        band = [(min(column), max(column)) for column in columns] if len(curves) > 1 else []
        lines.append(Line(name, steps, means, colour_of(name), width, place > 1, band))
    return lines


def seeds_note(seeds: int) -> str:
    """What a figure of such lines says of them."""
    return f"Mean of {seeds} seeds; the band is their range." if seeds > 1 else ""

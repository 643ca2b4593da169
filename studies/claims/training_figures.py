"""Figures of the training runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from studies.claims import design
from studies.claims.comparisons import COMMON_RATE, LEVEL, OWN_RATE, Pair, Runs, primary, secondary
from studies.claims.labels import MARK, NATS, SHOWN, TITLES, legend_below, named, sheet
from studies.claims.records import curve
from studies.claims.tables import FIRST, read_comparisons
from studies.claims.verdicts import SETTINGS
from vopd.reporting.colours import BLUE, GREY, ORANGE, colour_of
from vopd.statistics import t_interval

FIRST_COLOUR = "#b0b0b0"
Comparisons = Mapping[tuple[str, str, str, str, str], Mapping[str, str]]


# ---- learning curves ---------------------------------------------------------------------------------------------


def learning(axes: Any, runs: Runs, setting: str) -> None:
    """Mean curves over seeds, each estimator at its own rate, with the 95 % interval of the mean."""
    start = runs.starts[setting]["reverse_kl"]
    for name in (name for name in SHOWN if name in design.ESTIMATORS[setting]):
        steps, rows = curves_of(runs, setting, name)
        columns = list(zip(*rows, strict=True))
        edges = [(start, start), *(t_interval(column) for column in columns)]
        means = [start, *map(fmean, columns)]
        axes.plot([0, *steps], means, "o-", color=colour_of(name), label=named(name), linewidth=2, markersize=4)
        axes.fill_between([0, *steps], *zip(*edges, strict=True), color=colour_of(name), alpha=0.13, linewidth=0)
    axes.set_xlabel(f"optimizer step, {design.BATCH} samples each")


def curves_of(runs: Runs, setting: str, name: str) -> tuple[list[int], list[list[float]]]:
    """The checkpoints, and every seed's reverse KL there; a run that crashed has the start's, as in the comparisons."""
    found = list(runs.of(setting, OWN_RATE, name).values())
    whole = [curve(record) for record in found if "failed" not in record]
    steps = [step for step, _ in whole[0]]
    crashed = [[runs.starts[setting]["reverse_kl"]] * len(steps)] * (len(found) - len(whole))
    return steps, [[value for _, value in points] for points in whole] + crashed


def name_lines(axes: Any, runs: Runs, setting: str) -> None:
    """The estimators' names at the right ends of their curves, moved apart where these are close."""
    ends, last = {}, 0
    for name in (name for name in SHOWN if name in design.ESTIMATORS[setting]):
        steps, rows = curves_of(runs, setting, name)
        ends[name], last = fmean(row[-1] for row in rows), steps[-1]
    low, high = axes.get_ylim()
    place = -1.0
    for name in sorted(ends, key=ends.__getitem__):
        place = max(ends[name], place + 0.075 * (high - low))
        axes.annotate(
            name, (last, place), xytext=(8, 0), textcoords="offset points", va="center", fontsize=11,
            color=colour_of(name), annotation_clip=False,
        )  # fmt: skip
    axes.set_xticks(range(0, last + 1, max(1, last // 4)))
    axes.set_xlim(0, 1.75 * last)


def curves(runs: Runs) -> Any:
    """Learning curves in the three settings."""
    figure = sheet(12, 4.2)
    panels = figure.subplots(1, 3)
    for axes, setting in zip(panels, SETTINGS, strict=True):
        learning(axes, runs, setting)
        axes.set_title(TITLES[setting])
    panels[0].set_ylabel(NATS)
    legend_below(figure, panels[0], 3)
    return figure


# ---- differences -------------------------------------------------------------------------------------------------


def forest(compared: Comparisons) -> Any:
    """Every difference in reverse KL, each estimator at its own rate, with the first study's in grey below it."""
    first = read_comparisons(FIRST / "comparisons.csv")
    pairs = {setting: _pairs(setting) for setting in SETTINGS}
    figure = sheet(12, 1.3 + 0.22 * len(pairs["main"]))
    grid = figure.add_gridspec(2, 2, width_ratios=(1.15, 1))
    places = {"main": grid[:, 0], "larger": grid[0, 1], "sorting": grid[1, 1]}
    for setting, place in places.items():
        axes = figure.add_subplot(place)
        for index, pair in enumerate(pairs[setting]):
            _interval(axes, index, compared[_key(pair)])
            if earlier := _earlier(first, pair):
                low, value, high = earlier
                axes.plot([low, high], [index + 0.3] * 2, color=FIRST_COLOUR, linewidth=2)
                axes.plot(value, index + 0.3, "o", color=FIRST_COLOUR, markersize=4)
        _name_pairs(axes, pairs[setting])
        axes.set_title(TITLES[setting])
        if setting != "larger":
            axes.set_xlabel("difference in reverse KL, nats/token")
    figure.legend(handles=_legend(), loc="outside lower center", ncols=4, frameon=False, fontsize=11)
    return figure


def _pairs(setting: str) -> list[Pair]:
    return [pair for pair in [*primary(), *secondary()] if pair[:2] == (setting, OWN_RATE)]


def _key(pair: Pair) -> tuple[str, str, str, str, str]:
    setting, rates, first, second = pair
    return setting, rates, "reverse_kl", first, second


def _interval(axes: Any, index: int, row: Mapping[str, str]) -> None:
    """An estimate with its interval; its colour says what is left of it after Holm's correction."""
    value, low, high, adjusted = (float(row[key]) for key in ("difference", "low", "high", "holm"))
    colour = GREY if adjusted >= LEVEL else BLUE if value < 0 else ORANGE
    axes.plot([low, high], [index, index], color=colour, linewidth=2)
    filled = colour if adjusted < LEVEL else "white"
    axes.plot(value, index, "o", color=colour, markerfacecolor=filled, markersize=6)


def _earlier(first: Comparisons, pair: Pair) -> tuple[float, float, float] | None:
    """The first study's interval: at each one's best rate where it has that, else at the common rate."""
    setting, _, one, other = pair
    for rates in ("own best rate", COMMON_RATE):
        for sign, names in ((1, (one, other)), (-1, (other, one))):
            if row := first.get((setting, rates, "reverse_kl", *names)):
                low, value, high = sorted(sign * float(row[key]) for key in ("low", "difference", "high"))
                return low, value, high
    return None


def _name_pairs(axes: Any, pairs: Sequence[Pair]) -> None:
    """The pairs' names, with those that verdicts rest on above a line and in bold."""
    names = [f"{_short(first)} - {_short(second)}" for _, _, first, second in pairs]
    axes.set_yticks(range(len(pairs)), names, fontsize=11)
    decide = sum(pair in primary() for pair in pairs)
    for label in axes.get_yticklabels()[:decide]:
        label.set_fontweight("bold")
    axes.axhline(decide - 0.35, color="#cccccc", linewidth=1)
    axes.set_ylim(len(pairs) - 0.3, -0.6)
    axes.axvline(0, **MARK)
    axes.grid(visible=False, axis="y")


def _short(name: str) -> str:
    return name.replace("rao_blackwell_teacher", "rb_teacher")


def _legend() -> list[Any]:
    from matplotlib.lines import Line2D

    rows = (
        ("lower after Holm's correction", BLUE, BLUE), ("higher", ORANGE, ORANGE),
        ("not significant", GREY, "white"), ("first study, 5 seeds", FIRST_COLOUR, FIRST_COLOUR),
    )  # fmt: skip
    return [Line2D([], [], marker="o", color=line, markerfacecolor=face, label=text) for text, line, face in rows]


# ---- learning rates ----------------------------------------------------------------------------------------------


def rates(pilot: Sequence[Mapping[str, Any]], starts: Mapping[str, Mapping[str, float]]) -> Any:
    """The pilot's reverse KL by learning rate, in the three settings."""
    figure = sheet(12, 4.4)
    panels = figure.subplots(1, 3)
    for axes, setting in zip(panels, SETTINGS, strict=True):
        for name in design.ESTIMATORS[setting]:
            found = sorted(
                (one["rate"], one["reverse_kl"]) for one in pilot
                if (one["setting"], one["estimator"]) == (setting, name) and "failed" not in one
            )  # fmt: skip
            axes.plot(*zip(*found, strict=True), "o-", color=colour_of(name), label=named(name), linewidth=1.8)
        axes.axhline(starts[setting]["reverse_kl"], **MARK)
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_title(TITLES[setting])
    panels[0].set_ylabel(NATS)
    legend_below(figure, panels[0], 3)
    return figure

"""Figures of what was measured at fixed parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studies.claims.labels import MARK, SHOWN, TITLES, legend_below, named, sheet
from studies.claims.verdicts import ROUNDING, SETTINGS
from vopd.reporting.colours import colour_of

RATIO = "variance from sampling tokens, opd = 1"
BASELINES = (("vopd", "value"), ("vopd_optimal", "optimal"))


def noise_bars(axes: Any, noise: Mapping[str, Any]) -> None:
    """What each estimator leaves of vanilla's sampling noise, with its interval."""
    labels = {label.split(",")[0]: label for label in noise if "k = " not in label or label.endswith("k = 20")}
    for index, name in enumerate(SHOWN):
        found = noise[labels[name]]["token_over_opd"]
        axes.barh(index, found["value"], color=colour_of(name), height=0.5)
        axes.plot([found["low"], found["high"]], [index, index], color="#222222", linewidth=1.5)
        text = f"{found['value']:.2g}" if found["value"] > ROUNDING else "0"
        place = max(found["value"], found["high"])
        axes.annotate(text, (place, index), xytext=(6, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(SHOWN)), [_two_lines(named(name)) for name in SHOWN], fontsize=11)
    axes.set_ylim(len(SHOWN) - 0.5, -0.5)
    axes.set_xlim(0, 1.18)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(RATIO)


def _two_lines(label: str) -> str:
    return label.replace(" (", "\n(").replace("_teacher", "_\nteacher")


def variance(fixed: Mapping[str, Any]) -> Any:
    """The variance of the estimators that were measured in every setting, with a panel for each."""
    common = set.intersection(*(set(fixed[setting]["estimators"]) for setting in SETTINGS))
    labels = [label for label in fixed["main"]["estimators"] if label in common and _is_noisy(fixed, label)]
    figure = sheet(12, 0.8 + 0.31 * len(labels))
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    for axes, setting in zip(panels, SETTINGS, strict=True):
        _ratios(axes, fixed[setting]["estimators"], labels)
        axes.set_title(TITLES[setting])
    figure.supxlabel(RATIO, fontsize=12)
    return figure


def _is_noisy(fixed: Mapping[str, Any], label: str) -> bool:
    return bool(fixed["main"]["estimators"][label]["token_over_opd"]["value"] > ROUNDING) and label != "opd"


def _ratios(axes: Any, noise: Mapping[str, Any], labels: Sequence[str]) -> None:
    for index, label in enumerate(labels):
        ratio, colour = noise[label]["token_over_opd"], colour_of(label.split(",")[0])
        axes.plot([ratio["low"], ratio["high"]], [index, index], color=colour, linewidth=2.4)
        axes.plot(ratio["value"], index, "o", color=colour, markersize=6)
        axes.annotate(
            f"{ratio['value']:.2g}", (ratio["high"], index), xytext=(6, 0), textcoords="offset points", va="center",
            fontsize=10, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.axvline(1, **MARK)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(right=4)


def top_ks(noise: Mapping[str, Any]) -> Any:
    """Everything that was measured on main, at every k."""
    labels = [label for label, found in noise.items() if found["token_over_opd"]["value"] > ROUNDING]
    figure = sheet(9, 1 + 0.3 * len(labels))
    axes = figure.subplots()
    _ratios(axes, noise, labels)
    axes.set_title(TITLES["main"])
    axes.set_xlabel(RATIO)
    return figure


def samplers(fixed: Mapping[str, Any]) -> Any:
    """Squared bias when the tokens come from a sampler that is slightly wrong."""
    figure = sheet(12, 4.2)
    panels = figure.subplots(1, 3, sharey=True)
    for axes, setting in zip(panels, SETTINGS, strict=True):
        table = {name: found for name, found in fixed[setting]["samplers"].items() if name != "exact"}
        for name in (name for name in SHOWN if name in next(iter(table.values()))):
            values = [found[name]["relative_bias"] for found in table.values()]
            axes.plot(values, range(len(table)), "o", color=colour_of(name), label=named(name), markersize=8)
        axes.set_yticks(range(len(table)), list(table))
        axes.set_ylim(len(table) - 0.5, -0.5)
        axes.set_xscale("log")
        axes.set_title(TITLES[setting])
        axes.set_xlabel("squared bias / squared gradient")
    legend_below(figure, panels[0], 3)
    return figure


def entropy(fixed: Mapping[str, Any]) -> Any:
    """What the baselines leave of the variance, by the student's entropy."""
    figure = sheet(12, 4.4)
    panels = figure.subplots(1, 3, sharey=True)
    for axes, setting in zip(panels, SETTINGS, strict=True):
        bins = [entry for entry in fixed[setting]["profile"]["by_entropy"] if entry["none"] > 0]
        for name, key in BASELINES:
            values = [entry[key] / entry["none"] for entry in bins]
            axes.plot(range(len(bins)), values, "o-", color=colour_of(name), label=named(name))
        axes.axhline(1, **MARK)
        labels = [f"{entry['low']:.2g} - {entry['high']:.2g}" for entry in bins]
        axes.set_xticks(range(len(bins)), labels, rotation=40, ha="right", fontsize=10)
        axes.set_title(TITLES[setting])
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("variance with / without baseline")
    figure.supxlabel("entropy of the student, nats", fontsize=12)
    panels[0].legend(frameon=False)
    return figure


def along_training(fixed: Mapping[str, Any]) -> Any:
    """What the baselines leave of the variance as the student improves."""
    figure = sheet(12, 3.6)
    panels = figure.subplots(1, 3, sharey=True)
    for axes, setting in zip(panels, SETTINGS, strict=True):
        found = fixed[setting]["along_training"]
        for name, key in BASELINES:
            axes.plot(found["steps"], found[f"{key}_left"], "o-", color=colour_of(name), label=named(name))
        axes.set_title(TITLES[setting])
        axes.set_xlabel("optimizer step, with full_rkl")
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("variance with / without baseline")
    panels[0].legend(frameon=False)
    return figure

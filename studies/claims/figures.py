"""The figures of the study, drawn from studies/claims/results into docs/images/evidence.

python -m studies.claims.figures
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.claims import design
from studies.claims.tables import Results
from studies.claims.verdicts import SETTINGS, left_by
from vopd.errors import require
from vopd.reporting.colours import colour_of
from vopd.reporting.png import STYLE
from vopd.statistics import t_interval

RESULTS = Path(__file__).parent / "results"
FIGURES = Path(__file__).parents[2] / "docs" / "images" / "evidence"
_LARGE = {**STYLE, "font.size": 12, "axes.titlesize": 13, "legend.fontsize": 11}
SHOWN = ("opd", "vopd", "vopd_optimal", "rao_blackwell_teacher_top_k", "full_rkl")
TITLES = {
    "main": "Legs and sums, student of 0.2 M",
    "larger": "Legs and sums, student of 0.3 M",
    "sorting": "Sorting, vocabulary 1,200",
}
NAMES = {
    "opd": "opd (vanilla)",
    "vopd": "vopd (the paper's)",
    "vopd_top_k": "vopd_top_k, k = 5",
    "vopd_sparse": "vopd_sparse, k = 5",
    "vopd_optimal": "vopd_optimal",
    "rao_blackwell_teacher_top_k": "rao_blackwell_teacher_top_k, k = 20",
    "full_rkl": "full_rkl (no sampling noise)",
    "top_k_rkl": "top_k_rkl, k = 5 (biased)",
    "opd_undetached": "opd without stop-gradient",
    "opd_clipped": "opd, rewards clipped",
    "fixed_negative": "advantage -1 for all",
}


def main() -> None:
    """Draw every figure again from the committed results; no run is repeated."""
    kept = json.loads((RESULTS / "runs.json").read_text())
    fixed = json.loads((RESULTS / "fixed.json").read_text())
    draw_all(Results(kept["runs"], kept["starts"], kept["best_rates"]), fixed, FIGURES)


def draw_all(results: Results, fixed: Mapping[str, Any], folder: Path) -> None:
    """Write every figure into `folder`."""
    require("matplotlib", "report").use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    with pyplot.rc_context(_LARGE):
        _headline(pyplot, results, fixed, folder / "headline.png")
        _noise(pyplot, fixed, folder / "variance.png")
        _curves(pyplot, results, folder / "curves.png")
        _rates(pyplot, results, folder / "rates.png")
        _samplers(pyplot, fixed, folder / "samplers.png")
        _entropy(pyplot, fixed, folder / "entropy.png")
        _along(pyplot, fixed, folder / "along-training.png")


def _headline(pyplot: Any, results: Results, fixed: Mapping[str, Any], path: Path) -> None:
    """The one figure for the README: noise left, and what it does to training."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.6), layout="constrained", width_ratios=(1, 1.25))
    noise = fixed["main"]["estimators"]
    rows = [("opd", "opd"), ("vopd", "vopd"), ("vopd_optimal", "vopd_optimal")]
    rows += [("rao_blackwell_teacher_top_k", "rao_blackwell_teacher_top_k, k = 20"), ("full_rkl", "full_rkl")]
    for index, (name, label) in enumerate(rows):
        found = noise[label]["token_over_opd"]
        left.barh(index, found["value"], color=colour_of(name), height=0.5)
        left.plot([found["low"], found["high"]], [index, index], color="#222222", linewidth=1.5)
        place = max(found["value"], found["high"])
        left.annotate(
            f"{found['value']:.2g}" if found["value"] > 1e-9 else "0",
            (place, index),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
    left.set_yticks(range(len(rows)), [_two_lines(NAMES[name]) for name, _ in rows])
    left.set_ylim(len(rows) - 0.5, -0.5)
    left.set_xlim(0, 1.18)
    left.grid(visible=False, axis="y")
    left.set_title("Gradient noise left by each estimator")
    left.set_xlabel("variance from sampling the tokens, opd = 1")
    _learning(right, results, "main", "curve")
    seeds = min(len(results.of("main", name, design.COMMON_RATE)) for name in SHOWN)
    right.set_title(f"Distance from the teacher while training, {seeds} seeds")
    right.set_ylabel("held-out reverse KL, nats/token")
    _name_lines(right, results)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _two_lines(label: str) -> str:
    return label.replace(" (", "\n(").replace("_teacher", "_\nteacher")


def _name_lines(axes: Any, results: Results) -> None:
    """The estimators' names at the right ends of their curves, moved apart where these are close."""
    ends = {}
    for name in SHOWN:
        runs = results.of("main", name, design.COMMON_RATE)
        ends[name] = sum(run["curve"][-1][1] for run in runs) / len(runs)
    last = results.of("main", SHOWN[0], design.COMMON_RATE)[0]["curve"][-1][0]
    low, high = axes.get_ylim()
    place = -1.0
    for name in sorted(ends, key=lambda name: ends[name]):
        place = max(ends[name], place + 0.055 * (high - low))
        axes.annotate(
            name, (last, place), xytext=(8, 0), textcoords="offset points", va="center", fontsize=11,
            color=colour_of(name), annotation_clip=False,
        )  # fmt: skip
    axes.set_xticks(range(0, last + 1, 50))
    axes.set_xlim(0, 1.75 * last)


def _learning(axes: Any, results: Results, setting: str, key: str, names: Sequence[str] = SHOWN) -> None:
    """Mean curves over seeds at the common rate, with the 95 % interval of the mean."""
    start = results.starts[setting]["reverse_kl" if key == "curve" else "student_accuracy"]
    for name in names:
        runs = results.of(setting, name, design.COMMON_RATE)
        if not runs:
            continue
        columns = list(zip(*([value for _, value in run[key]] for run in runs)))
        steps = [0, *(step for step, _ in runs[0][key])]
        means = [start, *(sum(column) / len(column) for column in columns)]
        axes.plot(steps, means, "o-", color=colour_of(name), label=NAMES[name], linewidth=2, markersize=4)
        if len(runs) > 2:
            edges = [(start, start), *(t_interval(column) for column in columns)]
            axes.fill_between(steps, *zip(*edges), color=colour_of(name), alpha=0.13, linewidth=0)
    axes.set_xlabel(f"optimizer step, {design.BATCH} samples each")


def _noise(pyplot: Any, fixed: Mapping[str, Any], path: Path) -> None:
    figure, panels = pyplot.subplots(1, 3, figsize=(15, 5.8), layout="constrained", sharex=True)
    for axes, setting in zip(panels, SETTINGS):
        found = {
            name: entry["token_over_opd"] for name, entry in fixed[setting]["estimators"].items()
            if entry["token_over_opd"]["value"] > 1e-9
        }  # fmt: skip
        for index, (name, ratio) in enumerate(found.items()):
            colour = colour_of(name.split(",")[0])
            axes.plot([ratio["low"], ratio["high"]], [index, index], color=colour, linewidth=2.4)
            axes.plot(ratio["value"], index, "o", color=colour, markersize=6)
        axes.set_yticks(range(len(found)), list(found), fontsize=9)
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.axvline(1, color="#777777", linestyle="--", linewidth=1)
        axes.set_xscale("log")
        axes.set_title(TITLES[setting])
        axes.set_xlabel("variance from sampling the tokens, opd = 1")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _curves(pyplot: Any, results: Results, path: Path) -> None:
    figure, panels = pyplot.subplots(2, 3, figsize=(15, 8), layout="constrained")
    for column, setting in enumerate(SETTINGS):
        _learning(panels[0, column], results, setting, "curve")
        _learning(panels[1, column], results, setting, "accuracy_curve")
        panels[0, column].set_title(TITLES[setting])
    panels[0, 0].set_ylabel("held-out reverse KL, nats/token")
    panels[1, 0].set_ylabel("accuracy, greedy")
    panels[0, 0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _rates(pyplot: Any, results: Results, path: Path) -> None:
    """The pilot: one seed at every rate."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    for axes, key in ((left, "reverse_kl"), (right, "accuracy")):
        for name in design.MAIN:
            points = [(rate, runs[0][key]) for rate in design.RATES if (runs := results.of("main", name, rate, [0]))]
            if points:
                axes.plot(*zip(*points), "o-", color=colour_of(name), label=NAMES[name], linewidth=1.8)
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
    start = results.starts["main"]
    left.axhline(start["reverse_kl"], color="#777777", linestyle="--", linewidth=1)
    right.axhline(start["student_accuracy"], color="#777777", linestyle="--", linewidth=1)
    left.set_title("Held-out reverse KL, one seed (dashed: before training)")
    right.set_title("Accuracy, greedy, one seed")
    left.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _samplers(pyplot: Any, fixed: Mapping[str, Any], path: Path) -> None:
    figure, panels = pyplot.subplots(1, 3, figsize=(15, 4.8), layout="constrained", sharey=True)
    for axes, setting in zip(panels, SETTINGS):
        table = {name: found for name, found in fixed[setting]["samplers"].items() if name != "exact"}
        for name in ("opd", "vopd", "vopd_optimal", "rao_blackwell_teacher_top_k"):
            values = [found[name]["relative_bias"] for found in table.values()]
            axes.plot(values, range(len(table)), "o", color=colour_of(name), label=NAMES[name], markersize=8)
        axes.set_yticks(range(len(table)), list(table))
        axes.set_ylim(len(table) - 0.5, -0.5)
        axes.set_xscale("log")
        axes.set_title(TITLES[setting])
        axes.set_xlabel("squared bias / squared gradient")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _entropy(pyplot: Any, fixed: Mapping[str, Any], path: Path) -> None:
    figure, panels = pyplot.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    for axes, setting in zip(panels, SETTINGS):
        bins = [entry for entry in fixed[f"{setting} along training"][0]["by_entropy"] if entry["none"] > 0]
        labels = [f"{entry['low']:.2g} - {entry['high']:.2g}" for entry in bins]
        for name, key in (("vopd", "value"), ("vopd_optimal", "optimal")):
            values = [entry[key] / entry["none"] for entry in bins]
            axes.plot(range(len(bins)), values, "o-", color=colour_of(name), label=NAMES[name])
        axes.axhline(1, color="#777777", linestyle="--", linewidth=1)
        axes.set_xticks(range(len(bins)), labels, rotation=30, ha="right", fontsize=9)
        axes.set_ylim(bottom=0)
        axes.set_title(TITLES[setting])
        axes.set_xlabel("entropy of the student, nats")
    panels[0].set_ylabel("variance with / without baseline")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _along(pyplot: Any, fixed: Mapping[str, Any], path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(7.5, 4.6), layout="constrained")
    styles = dict(zip(SETTINGS, ("-", "--", ":")))
    for setting in SETTINGS:
        profiles = fixed[f"{setting} along training"]
        steps = [profile["step"] for profile in profiles]
        for name, key in (("vopd", "value"), ("vopd_optimal", "optimal")):
            values = [left_by(profile, key) for profile in profiles]
            axes.plot(steps, values, "o" + styles[setting], color=colour_of(name), label=f"{NAMES[name]}, {setting}")
    axes.set_ylim(0, 0.85)
    axes.set_xlabel("optimizer step (training with full_rkl)")
    axes.set_ylabel("variance with / without baseline")
    axes.set_title("Variance left by the baselines as the student improves")
    axes.legend(frameon=False, fontsize=9, ncols=2)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()

"""Figures of a comparison, drawn without a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vopd.errors import require
from vopd.statistics import mean_score

from .comparison import Comparison, relative_noise, score_of
from .png import STYLE
from .run_files import read_metrics, series, smoothed

# One colour an estimator in every figure; chosen to differ in lightness too, and told apart by colour-blind readers.
COLOURS = {
    "opd": "#4d4d4d",
    "vopd": "#0072b2",
    "vopd_top_k": "#56b4e9",
    "vopd_sparse": "#7fa7c9",
    "vopd_optimal": "#d55e00",
    "vopd_teacher_top_k": "#8c6bb1",
    "vopd_teacher_top_k_optimal": "#6a3d9a",
    "rao_blackwell_top_k": "#66c2a5",
    "rao_blackwell_teacher_top_k": "#009e73",
    "full_rkl": "#cc79a7",
    "top_k_rkl": "#b8860b",
}
_OTHER = "#999999"
_SMOOTHING = 15


def colour_of(estimator: str) -> str:
    """Return the colour that stands for an estimator in every figure, whatever its learning rate."""
    return COLOURS.get(estimator.split(" ")[0], _OTHER)


def plot_comparison(comparison: Comparison, folder: str | Path, path: str | Path) -> None:
    """Draw a comparison into a PNG: held-out reverse KL, gradient noise, training divergence, accuracy.

    Args:
        folder: where the runs' directories are; training curves come from their metrics.jsonl.
        path: of the PNG. Needs the extra `report`.
    """
    require("matplotlib", "report").use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, panels = pyplot.subplots(2, 2, figsize=(11, 8), layout="constrained")
        _held_out_panel(panels[0, 0], comparison)
        _noise_panel(panels[0, 1], comparison)
        _training_panel(panels[1, 0], comparison, Path(folder))
        _accuracy_panel(panels[1, 1], comparison)
        handles = [pyplot.Line2D([], [], color=colour_of(name), linewidth=4) for name in comparison.estimators]
        seeds = "single seed" if len(comparison.seeds) == 1 else f"{len(comparison.seeds)} seeds"
        figure.suptitle(f"The same student, teacher and prompts for every estimator ({seeds})")
        figure.legend(handles, comparison.estimators, loc="outside lower center", ncols=6, frameon=False)
        figure.savefig(path, dpi=150)
        pyplot.close(figure)


def _held_out_panel(axes: Any, comparison: Comparison) -> None:
    axes.set_title("Distance from the teacher: held-out reverse KL")
    for run in comparison.runs:
        steps, values = zip(*run.curve, strict=True)
        axes.plot(steps, values, color=colour_of(run.estimator), marker="o", markersize=3.5, linewidth=1.8)
    axes.axhline(comparison.start.reverse_kl.value, color="#777777", linestyle="--", linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("nats a token, exact")


def _training_panel(axes: Any, comparison: Comparison, folder: Path) -> None:
    axes.set_title(f"Training batches: sampled reverse KL, mean over {_SMOOTHING} steps")
    for run in comparison.runs:
        steps, values = series(read_metrics(folder / run.directory), "sampled_reverse_kl")
        axes.plot(steps, smoothed(values, _SMOOTHING), color=colour_of(run.estimator), linewidth=1.5)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("nats a token, sampled")


def _noise_panel(axes: Any, comparison: Comparison) -> None:
    noise = relative_noise(comparison.start, comparison.estimators)
    names = list(noise)
    axes.set_title("Gradient noise from drawing the tokens")
    axes.barh(range(len(names)), list(noise.values()), color=[colour_of(name) for name in names], height=0.4)
    for row, (name, value) in enumerate(noise.items()):
        text = "0, exact" if value == 0 else f"{value:.2g}"
        axes.annotate(text, (value, row), xytext=(5, 0), textcoords="offset points", va="center")
        _name_row(axes, row, name)
    _rows_only(axes, len(names))
    axes.set_xlim(0, 1.12 * max([1.0, *noise.values()]))
    axes.set_xlabel("variance at the student before training, opd = 1")


def _accuracy_panel(axes: Any, comparison: Comparison) -> None:
    axes.set_title("Right answers on held-out problems, greedy, 95 % interval")
    before = 100 * mean_score(comparison.start.student_outcomes).value
    teacher = 100 * mean_score(comparison.start.teacher_outcomes).value
    for value, label, side, height in ((before, "student before", "left", 0.02), (teacher, "teacher", "right", 0.94)):
        axes.axvline(value, color="#777777", linestyle="--", linewidth=1)
        axes.annotate(
            f"{label} {value:.0f} %", (value, height), xycoords=("data", "axes fraction"), color="#555555",
            xytext=(4 if side == "left" else -4, 0), textcoords="offset points", ha=side,
        )  # fmt: skip
    for row, name in enumerate(comparison.estimators):
        score = score_of(comparison.runs_of(name))
        axes.plot([100 * score.low, 100 * score.high], [row, row], color=colour_of(name), linewidth=2.4)
        axes.plot(100 * score.value, row, "o", color=colour_of(name), markersize=8)
        axes.annotate(
            f"{100 * score.value:.0f} %", (100 * score.high, row), xytext=(6, 0), textcoords="offset points",
            va="center",
        )  # fmt: skip
        _name_row(axes, row, name)
    _rows_only(axes, len(comparison.estimators))
    low, high = axes.get_xlim()
    axes.set_xlim(low - 0.12 * (high - low), high + 0.06 * (high - low))
    axes.set_xlabel("%")


def _name_row(axes: Any, row: int, name: str) -> None:
    """Write the name above its row, inside the panel: names are too long to stand beside it."""
    axes.annotate(
        name, (0, row - 0.27), xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points",
        va="bottom", color=colour_of(name), fontweight="bold", fontsize=9,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
    )  # fmt: skip


def _rows_only(axes: Any, rows: int) -> None:
    axes.set_yticks([])
    axes.set_ylim(rows - 0.2, -0.8)
    axes.grid(visible=False, axis="y")

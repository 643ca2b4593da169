"""Accuracy of checkpoints with intervals, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vopd.errors import require


def plot_accuracy(results: dict[str, Any], path: str | Path) -> None:
    """Draw avg@k of every benchmark against the checkpoints, with 95 % intervals, into a .png, .svg or .pdf.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = require("matplotlib.figure", "report").Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    checkpoints = list(dict.fromkeys(row["checkpoint"] for row in results["results"]))
    for benchmark in dict.fromkeys(row["benchmark"] for row in results["results"]):
        rows = [row for row in results["results"] if row["benchmark"] == benchmark]
        places = [checkpoints.index(row["checkpoint"]) for row in rows]
        scores = [{name: 100 * value for name, value in row["avg_at_k"].items() if name != "count"} for row in rows]
        values = [score["value"] for score in scores]
        below = [score["value"] - score["low"] for score in scores]
        above = [score["high"] - score["value"] for score in scores]
        axes.errorbar(
            places, values, yerr=[below, above], marker="o", capsize=3, label=f"{benchmark}, n = {rows[0]['problems']}"
        )
    axes.set_xticks(range(len(checkpoints)), checkpoints, rotation=20, ha="right")
    axes.set_ylabel("avg@k, per cent, 95 % interval")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)

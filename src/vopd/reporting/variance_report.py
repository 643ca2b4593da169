"""What `vopd variance` measured, as sections of a page: its own page, or part of that of a run or a comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vopd.errors import DataError

from .drawing import figures_html
from .figures import Bar, Bars, Dot, Dots, Figure
from .page import escape, page, section, table
from .plots import colour_of
from .variance_text import variance_rows, variance_text

RESULTS_FILE = "results.json"
# Beside a run or a comparison: vopd variance --output_dir RUN --run_name variance
SUBFOLDER = "variance"
_NOTE = (
    "At fixed parameters, in all trained parameters: the token part is what drawing the tokens adds, the total that of "
    "fresh rollouts. Bias is squared and relative to the exact gradient. Intervals: 95 %, over contexts."
)


def read_variance(folder: Path) -> dict[str, Any] | None:
    """Results of `vopd variance` in this folder, or None where there is no such file or it is of another command.

    Raises:
        DataError: the file is not JSON.
    """
    path = folder / RESULTS_FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    return found if isinstance(found, dict) and {"estimators", "context", "profile"} <= set(found) else None


def variance_report(folder: Path, results: Mapping[str, Any]) -> tuple[str, list[Figure]]:
    """The page of a measurement, and its figures."""
    figures = variance_figures(results)
    settings = [[name, str(value)] for name, value in results["settings"].items()]
    parts = [
        variance_section(results),
        section("settings", "Settings", f'<div class="settings">{table(["setting", "value"], settings)}</div>'),
    ]
    contexts = results["settings"].get("contexts", "")
    return page("Gradient variance at fixed parameters", f"{folder.name}, {contexts} contexts", parts), figures


def variance_beside(folder: Path) -> tuple[list[str], list[Figure]]:
    """Section and figures of a measurement in the subfolder `variance` of a run or a comparison; empty without one."""
    results = read_variance(folder / SUBFOLDER)
    return ([], []) if results is None else ([variance_section(results)], variance_figures(results))


def variance_section(results: Mapping[str, Any]) -> str:
    """Table and figures as one section."""
    headers, rows = variance_rows(dict(results))
    text = escape("; ".join(variance_text(dict(results)).split("\n")[-5:-3]))
    body = table(headers, rows) + f'<p class="note">{text}</p>' + figures_html(variance_figures(results))
    return section("measured", "Variance at fixed parameters", body, _NOTE)


def variance_figures(results: Mapping[str, Any]) -> list[Figure]:
    """Token parts with intervals, and what the baselines leave by entropy and by position."""
    dots = []
    for name, noise in results["estimators"].items():
        part = noise["token"]
        text = "0, exact" if part["value"] <= 1e-9 * results["context"]["value"] else f"{part['value']:.3g}"
        dots.append(Dot(name, part["value"], part["low"], part["high"], colour_of(name), text))
    context = results["context"]["value"]
    note = "Dashed: the context part, which no baseline changes."
    figures: list[Figure] = [
        Dots(
            "token_part",
            "Token part of the variance",
            "95 % interval over contexts",
            dots,
            note,
            (("context", context),),
        )
    ]
    for key, what in (("by_entropy", "entropy of the student, nats"), ("by_position", "position in the completion")):
        bins = [entry for entry in results["profile"][key] if entry["none"] > 0]
        if bins:
            figures.append(_profile(key, what, bins))
    return figures


def _profile(key: str, what: str, bins: Sequence[Mapping[str, float]]) -> Bars:
    rows = []
    for entry in bins:
        label = f"{entry['low']:.2g} - {entry['high']:.2g}"
        for name, baseline in (("vopd", "value"), ("vopd_optimal", "optimal")):
            left = entry[baseline] / entry["none"]
            rows.append(Bar(f"{label}, {baseline}", [(baseline, left, colour_of(name))], f"{left:.2f}"))
    title = "Left by the baselines, by " + what.split(" ")[0]
    return Bars(key, title, f"variance with / without baseline, in the logits; {what}", rows)

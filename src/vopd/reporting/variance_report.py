"""What `vopd variance` measured: as text, as a picture, and as sections of a page of its own or of a run's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .colours import BLUE, GREY, ORANGE, colour_of
from .drawing import figures_html
from .figures import Curves, Figure, Line, Row, Rows
from .page import escape, page, section, table
from .png import write_png
from .run_files import read_json
from .tables import format_table

RESULTS_FILE = "results.json"
# Beside a run or a comparison: vopd variance --output_dir RUN --run_name variance
SUBFOLDER = "variance"
_NOTE = (
    "At fixed parameters, in all trained parameters: the token part is what drawing the tokens adds, the total that of "
    "fresh rollouts. Bias is squared and relative to the exact gradient. Intervals: 95 %, over contexts."
)
_BASELINES = (("none", "no baseline", GREY), ("value", "value", BLUE), ("optimal", "optimal", ORANGE))
_PROFILES = {"position": "position in the completion", "entropy": "entropy of the student, nats"}
Results = Mapping[str, Any]


def read_variance(folder: Path) -> Results | None:
    """Results of `vopd variance` in this folder, or None where there is no such file or it is of another command.

    Raises:
        DataError: the file is not a JSON object.
    """
    found = read_json(folder / RESULTS_FILE)
    return found if {"estimators", "context", "profile"} <= set(found) else None


def variance_text(results: Results) -> str:
    """The table of `vopd variance`: every part with its 95 % interval over contexts."""
    settings = results["settings"]
    return "\n".join(
        [
            format_table(*_rows(results)),
            *_remarks(results),
            f"{settings['contexts']} contexts, tokens redrawn {settings['resamples']} times; [95 % over contexts].",
            "Variances in all trained parameters, of one rollout's gradient; bias is squared, relative to the exact",
            "gradient, and about 0 where there is none; signal/noise is |exact gradient|^2 / token part.",
        ]
    )


def draw_variance(results: Results, path: Path) -> None:
    """Draw the token parts, and the closed-form variance by position and by entropy, into a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    write_png(_figures(results)[0], path)


def variance_report(folder: Path, results: Results) -> tuple[str, list[Figure]]:
    """The page of a measurement, and its figures."""
    body, figures = _section(results)
    settings = table(["setting", "value"], [[name, str(value)] for name, value in results["settings"].items()])
    parts = [body, section("settings", "Settings", f'<div class="settings">{settings}</div>')]
    contexts = results["settings"].get("contexts", "")
    return page("Gradient variance at fixed parameters", f"{folder.name}, {contexts} contexts", parts), figures


def variance_beside(folder: Path) -> tuple[str, list[Figure]]:
    """Section and figures of a measurement in the subfolder `variance` of a run or a comparison; empty without one."""
    results = read_variance(folder / SUBFOLDER)
    return ("", []) if results is None else _section(results)


def _section(results: Results) -> tuple[str, list[Figure]]:
    shown, shares = _figures(results)
    figures = [*shown, *shares]
    remarks = f'<p class="note">{escape("; ".join(_remarks(results)))}</p>'
    body = table(*_rows(results)) + remarks + figures_html(figures)
    return section("measured", "Variance at fixed parameters", body, _NOTE), figures


def _rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """Headers and one row an estimator."""
    rows = []
    for name, noise in results["estimators"].items():
        cells = [_interval(noise[part]) for part in ("token", "total", "relative_bias")]
        ratio = "no noise" if noise["signal_to_noise"] is None else _interval(noise["signal_to_noise"])
        rows.append([name, *cells, ratio, _interval(noise["cosine"])])
    return ["", "token part", "total", "bias", "signal/noise", "cosine"], rows


def _remarks(results: Results) -> list[str]:
    share = results["profile"]["value_hurts_share"]
    hurts = f"{share['value']:.1%} [{share['low']:.1%}, {share['high']:.1%}]"
    return [
        f"context part, the same for all that are unbiased: {_interval(results['context'])}",
        f"tokens where the value baseline raises the variance: {hurts}",
    ]


def _interval(found: Mapping[str, float]) -> str:
    value, low, high = ("0" if abs(found[key]) < 1e-9 else f"{found[key]:.3g}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _figures(results: Results) -> tuple[list[Figure], list[Figure]]:
    """Token parts, and what variance each baseline leaves by position and by entropy; then what shares these are."""
    shown: list[Figure] = [_token_part(results)]
    shares: list[Figure] = []
    for key, axis in _PROFILES.items():
        bins = results["profile"][f"by_{key}"]
        names = [f"{entry['low']:.2g} - {entry['high']:.2g}" for entry in bins]
        lines = [
            Line(label, range(len(bins)), [entry[baseline] for entry in bins], colour)
            for baseline, label, colour in _BASELINES
        ]
        rows = []
        for place, entry in zip(names, bins):
            for baseline, label, colour in _BASELINES[1:] if entry["none"] > 0 else ():
                share = entry[baseline] / entry["none"]
                rows.append(Row(f"{place}, {label}", f"{share:.2f}", [(label, share, colour)]))
        unit = "closed form in the logits, mean of a bin"
        if bins:
            shown.append(Curves(f"variance_by_{key}", f"Variance by {key}", unit, lines, axis=axis, places=names))
        unit = f"variance with / without baseline, in the logits; {axis}"
        if rows:
            shares.append(Rows(f"by_{key}", f"Left by the baselines, by {key}", unit, rows))
    return shown, shares


def _token_part(results: Results) -> Rows:
    context = results["context"]["value"]
    rows = []
    for name, noise in results["estimators"].items():
        value, low, high = (noise["token"][part] for part in ("value", "low", "high"))
        exact = value <= 1e-9 * context  # what is left is rounding
        text = "0, exact" if exact else f"{value:.3g}"
        value, low, high = (0.0, 0.0, 0.0) if exact else (value, low, high)
        rows.append(Row(name, text, [(name, value, colour_of(name, results.get("colours")))], (low, high)))
    note = "Logarithmic. Dashed: the context part, which no baseline changes."
    marks = [("context", context)]
    return Rows("token_part", "Token part of the variance", "95 % interval over contexts", rows, note, marks, True)

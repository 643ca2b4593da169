"""What `vopd variance` measured: as text that ends with a verdict, as a picture, and as sections of a page."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vopd.errors import MissingExtraError
from vopd.estimators import ESTIMATORS
from vopd.estimators.advice import WITH_FULL_ROWS, WITH_TOP_K
from vopd.estimators.policy_gradient import OPD
from vopd.estimators.rao_blackwell import RAO_BLACKWELL_TEACHER_TOP_K, RAO_BLACKWELL_TOP_K
from vopd.statistics import Interval, ratio_of_means

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
    "Variance of one rollout's gradient in all trained parameters, at fixed parameters. Token part: what sampling the "
    "tokens adds. Total: the variance over fresh rollouts. Bias: squared, relative to the exact gradient. Intervals: "
    "95 %, over contexts."
)
_BASELINES = (("none", "no baseline", GREY), ("value", "value", BLUE), ("optimal", "optimal", ORANGE))
# Tables of 100 columns are the widest that fit most terminals.
_WIDTH = 100
_PROFILES = {"position": "position in the completion", "entropy": "entropy of the student, nats"}
Results = Mapping[str, Any]


def read_variance(folder: Path) -> Results | None:
    """Results of `vopd variance` in this folder, or None if there are none (results.json may be another command's).

    Raises:
        DataError: the file is not a JSON object.
    """
    found = read_json(folder / RESULTS_FILE)
    return found if {"estimators", "context", "profile"} <= set(found) else None


def variance_text(results: Results) -> str:
    """The table of `vopd variance`, every part with its 95 % interval over contexts, and the verdict."""
    settings = results["settings"]
    table = [
        format_table(*_rows(results)),
        *_remarks(results),
        f"{settings['contexts']} contexts, tokens resampled {settings['resamples']} times; [95 % over contexts].",
        "Variance of one rollout's gradient in all trained parameters. Bias is squared, relative to the exact",
        "gradient, and about 0 if unbiased. signal/noise is |exact gradient|^2 / token part.",
    ]
    return "\n".join([*table, "", *(textwrap.fill(line, _WIDTH) for line in verdict(results))])


def verdict(results: Results) -> list[str]:
    """What was measured and which estimator to use, a sentence or two a line; empty without variances by context.

    Noise is the token part. Ratios are paired by context; what a ratio's 95 % interval does not tell apart is said to
    be open. Recommendations are those of docs/concepts/estimators.md unless the measurement clearly contradicts them.

    Raises:
        MissingExtraError: SciPy, which computes the intervals, is not installed.
    """
    found, contexts = results["estimators"], results["settings"].get("contexts", "these")
    if not all("token_by_context" in noise for noise in found.values()):
        return []
    biased = results.get("biased", [name for name, estimator in ESTIMATORS.items() if not estimator.unbiased])
    exact = [name for name, noise in found.items() if _is_exact(noise, results) and name not in biased]
    noisy = [name for name in found if name not in (*exact, *biased)]
    lines = [_measured(noisy, exact, found)]
    whole, gradient, served = WITH_FULL_ROWS.estimator.name, WITH_FULL_ROWS.instead.name, WITH_TOP_K.estimator.name
    groups = {gradient: _policy_gradients(noisy), served: _served(noisy)}
    advised: dict[str, str] = {}
    for usual, rivals in groups.items():
        advised[usual], open_question = _least(usual, rivals, found, contexts)
        lines += open_question
    lines.insert(1, (
        f"With {WITH_FULL_ROWS.given} use {whole} ({WITH_FULL_ROWS.why}), or {advised[gradient]} "
        f"{WITH_FULL_ROWS.unless}; with {WITH_TOP_K.given} use {advised[served]}."
    ))  # fmt: skip
    reference = _reference(noisy, found)
    if reference and found[reference]["token"]["high"] < results["context"]["low"]:
        token, context = found[reference]["token"]["value"], results["context"]["value"]
        lines.append(
            f"{context / (context + token):.0%} of the variance comes from the contexts, which no estimator changes: "
            "more completions per step reduce it."
        )
    lines += [
        f"{name} is biased by construction: its squared bias here is "
        f"{_short(Interval(**found[name]['relative_bias']))} of the exact gradient's squared norm, and more samples do "
        "not reduce it."
        for name in found if name in biased
    ]  # fmt: skip
    return lines


def _measured(noisy: list[str], exact: list[str], found: Results) -> str:
    """The noise that each estimator leaves of the reference's."""
    reference = _reference(noisy, found)
    others = [name for name in noisy if name != reference]
    parts = [f"{name} {_short(_relative(name, reference, found))}" for name in others]
    has = f"{', '.join(exact)} {'has' if len(exact) == 1 else 'have'}"
    none = f"{has} none" if exact else ""
    if not parts:
        alone = f"{reference} is the only noisy unbiased estimator measured; name several in --estimators"
        measured = [*[f"{has} no sampling noise"] * bool(exact), *[alone] * bool(noisy)]
        return f"Verdict: {'; '.join(measured) or 'only biased estimators were measured'}."
    open_ones = [name for name in others if _tells(_relative(name, reference, found)) == 0]
    worse = [name for name in others if _tells(_relative(name, reference, found)) > 0]
    text = f"Verdict: sampling noise as a multiple of {reference}'s: {', '.join(parts)}{f'; {none}' if none else ''}."
    text += f" {', '.join(worse)}: more noise than {reference}." if worse else ""
    return text + (f" {', '.join(open_ones)}: no clear difference from {reference}." if open_ones else "")


def _least(usual: str, rivals: list[str], found: Results, contexts: Any) -> tuple[str, list[str]]:
    """The recommended estimator, or a rival with clearly less noise here; and a line where that is undecided."""
    others = [name for name in rivals if name != usual]
    if usual not in rivals or not others:  # not measured, or without noise here
        return usual, []
    best = min(others, key=lambda name: found[name]["token"]["value"])
    ratio = _relative(best, usual, found)
    if _tells(ratio) > 0:
        return usual, []
    if _tells(ratio) < 0:
        return best, [f"Here {best} has less noise than {usual}, which usually has the least: {_short(ratio)} of it."]
    return usual, [
        f"{contexts} contexts are too few to tell {best} from {usual} (noise ratio {_short(ratio)}): raise --contexts."
    ]


def _tells(ratio: Interval) -> int:
    """-1 or 1 where the whole interval lies below or above 1, 0 where it holds 1."""
    return (ratio.low > 1) - (ratio.high < 1)


def _reference(noisy: list[str], found: Results) -> str:
    """OPD where it was measured, else the noisiest."""
    return OPD.name if OPD.name in noisy else max(noisy, key=lambda name: found[name]["token"]["value"], default="")


def _policy_gradients(noisy: list[str]) -> list[str]:
    """Those of the catalogue that sum no token exactly."""
    summed = (RAO_BLACKWELL_TOP_K.name, RAO_BLACKWELL_TEACHER_TOP_K.name)
    return [name for name in noisy if name in ESTIMATORS and name not in summed]


def _served(noisy: list[str]) -> list[str]:
    """Those for which a server's scores are enough."""
    return [name for name in noisy if name in ESTIMATORS and ESTIMATORS[name].teacher_scores]


def _relative(name: str, other: str, found: Results) -> Interval:
    above, below = (found[one]["token_by_context"] for one in (name, other))
    return ratio_of_means(above, below, positive=True)


def _short(found: Interval) -> str:
    return f"{found.value:.2g} [{found.low:.2g}, {found.high:.2g}]"


def draw_variance(results: Results, path: Path) -> None:
    """Draw the token parts, and the closed-form variance by position and by entropy, as a PNG.

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
    """Section and figures of the measurement in the subfolder `variance` of a run or a comparison, if there is one."""
    results = read_variance(folder / SUBFOLDER)
    return ("", []) if results is None else _section(results)


def _section(results: Results) -> tuple[str, list[Figure]]:
    shown, shares = _figures(results)
    figures = [*shown, *shares]
    remarks = f'<p class="note">{escape("; ".join(_remarks(results)))}</p>'
    body = _verdict_html(results) + table(*_rows(results)) + remarks + figures_html(figures)
    return section("measured", "Variance at fixed parameters", body, _NOTE), figures


def _verdict_html(results: Results) -> str:
    try:
        lines = verdict(results)
    except MissingExtraError:
        return ""
    return "".join(f'<p class="verdict">{escape(line)}</p>' for line in lines)


def _rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """Headers and one row per estimator."""
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
        f"context part, the same for every unbiased estimator: {_interval(results['context'])}",
        f"tokens where the value baseline raises the variance: {hurts}",
    ]


def _interval(found: Mapping[str, float]) -> str:
    value, low, high = ("0" if abs(found[key]) < 1e-9 else f"{found[key]:.3g}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _figures(results: Results) -> tuple[list[Figure], list[Figure]]:
    """Token parts, and the variance under each baseline by position and by entropy; then the same as shares."""
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
        unit = "closed form in the logits, mean per bin"
        if bins:
            shown.append(Curves(f"variance_by_{key}", f"Variance by {key}", unit, lines, axis=axis, places=names))
        unit = f"variance with / without baseline, in the logits; {axis}"
        if rows:
            shares.append(Rows(f"by_{key}", f"Variance left by the baselines, by {key}", unit, rows))
    return shown, shares


def _is_exact(noise: Mapping[str, Any], results: Results) -> bool:
    """Whether there is no noise: all that is left is rounding."""
    return bool(noise["token"]["value"] <= 1e-9 * results["context"]["value"])


def _token_part(results: Results) -> Rows:
    context = results["context"]["value"]
    rows = []
    for name, noise in results["estimators"].items():
        value, low, high = (noise["token"][part] for part in ("value", "low", "high"))
        exact = _is_exact(noise, results)
        text = "0, exact" if exact else f"{value:.3g}"
        value, low, high = (0.0, 0.0, 0.0) if exact else (value, low, high)
        rows.append(Row(name, text, [(name, value, colour_of(name, results.get("colours")))], (low, high)))
    note = "Logarithmic scale. Dashed: the context part, which no baseline changes."
    marks = [("context", context)] if context > 0 else []  # 0 for two equal models
    return Rows("token_part", "Token part of the variance", "95 % interval over contexts", rows, note, marks, True)

"""What `vopd variance` measured, as a table and as a figure; both are made from its results.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vopd.errors import require

from .plots import colour_of
from .png import STYLE
from .tables import format_table

_BASELINES = (("none", "no baseline", "#4d4d4d"), ("value", "value", "#0072b2"), ("optimal", "optimal", "#d55e00"))


def variance_text(results: dict[str, Any]) -> str:
    """The table of `vopd variance`: every part with its 95 % interval over contexts."""
    headers, rows = variance_rows(results)
    settings = results["settings"]
    return "\n".join(
        [
            format_table(headers, rows),
            f"context part, the same for all that are unbiased: {_interval(results['context'])}",
            f"tokens where the value baseline raises the variance: {_percent(results['profile']['value_hurts_share'])}",
            f"{settings['contexts']} contexts, tokens redrawn {settings['resamples']} times; [95 % over contexts].",
            "Variances in all trained parameters, of one rollout's gradient; bias is squared, relative to the exact",
            "gradient, and about 0 where there is none; signal/noise is |exact gradient|^2 / token part.",
        ]
    )


def variance_rows(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headers and one row an estimator."""
    headers = ["", "token part", "total", "bias", "signal/noise", "cosine"]
    return headers, [_row(name, noise) for name, noise in results["estimators"].items()]


def _row(name: str, noise: dict[str, Any]) -> list[str]:
    ratio = "no noise" if noise["signal_to_noise"] is None else _interval(noise["signal_to_noise"])
    cells = [_interval(noise[part]) for part in ("token", "total", "relative_bias")]
    return [name, *cells, ratio, _interval(noise["cosine"])]


def _interval(found: dict[str, float]) -> str:
    return f"{_number(found['value'])} [{_number(found['low'])}, {_number(found['high'])}]"


def _number(value: float) -> str:
    return "0" if abs(value) < 1e-9 else f"{value:.3g}"


def _percent(found: dict[str, float]) -> str:
    return f"{found['value']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"


def plot_variance(results: dict[str, Any], path: str | Path) -> None:
    """Draw the token parts with intervals, and the closed-form profiles by position and by entropy, into a PNG."""
    require("matplotlib", "report").use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, panels = pyplot.subplots(1, 3, figsize=(16, 5), layout="constrained", width_ratios=(1.2, 1, 1))
        _token_panel(panels[0], results)
        _profile_panel(panels[1], results["profile"]["by_position"], "position in the completion")
        _profile_panel(panels[2], results["profile"]["by_entropy"], "entropy of the student, nats")
        figure.savefig(path, dpi=140)
        pyplot.close(figure)


def _token_panel(axes: Any, results: dict[str, Any]) -> None:
    axes.set_title("In parameter space: token part (dashed: context part)")
    names = list(results["estimators"])
    shown = {name: results["estimators"][name]["token"] for name in names}
    context = results["context"]["value"]
    for row, (name, part) in enumerate(shown.items()):
        # On a logarithmic axis an exact estimator has no place; its row says so.
        if part["value"] <= 1e-9 * context:
            axes.annotate("0, exact", (0.02, row), xycoords=("axes fraction", "data"), va="center")
            continue
        axes.plot([part["low"], part["high"]], [row, row], color=colour_of(name), linewidth=2.4)
        axes.plot(part["value"], row, "o", color=colour_of(name), markersize=8)
    axes.axvline(context, color="#777777", linestyle="--", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("95 % interval over contexts")


def _profile_panel(axes: Any, bins: list[dict[str, float]], label: str) -> None:
    axes.set_title("Closed form in the logits, mean of a bin")
    ticks = [f"{entry['low']:.2g} - {entry['high']:.2g}" for entry in bins]
    for name, title, colour in _BASELINES:
        axes.plot(range(len(bins)), [entry[name] for entry in bins], "o-", color=colour, label=title)
    axes.set_xticks(range(len(bins)), ticks, rotation=30, ha="right", fontsize=8)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(label)
    axes.legend(frameon=False)

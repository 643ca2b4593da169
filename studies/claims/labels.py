"""Names, order and style that the figures share."""

from __future__ import annotations

from typing import Any

from vopd.errors import require
from vopd.reporting.png import STYLE

LARGE = {**STYLE, "font.size": 12, "axes.titlesize": 13, "legend.fontsize": 11}
DPI = 120
SHOWN = ("opd", "vopd", "vopd_optimal", "rao_blackwell_teacher_top_k", "full_rkl")
TITLES = {
    "main": "main: legs and sums, 0.2 M",
    "larger": "larger: legs and sums, 0.3 M",
    "sorting": "sorting: vocabulary 1,200",
}
NAMES = {
    "opd": "opd (vanilla)",
    "vopd": "vopd (the paper's)",
    "vopd_top_k": "vopd_top_k, k = 5",
    "rao_blackwell_teacher_top_k": "rao_blackwell_teacher_top_k, k = 20",
    "full_rkl": "full_rkl (no sampling noise)",
    "opd_undetached": "opd without stop-gradient",
}
MARK = {"color": "#777777", "linestyle": "--", "linewidth": 1}
NATS = "held-out reverse KL, nats/token"


def named(estimator: str) -> str:
    """An estimator's name in a legend."""
    return NAMES.get(estimator, estimator)


def sheet(width: float, height: float) -> Any:
    """An empty matplotlib figure, in inches."""
    return require("matplotlib.figure", "report").Figure((width, height), layout="constrained")


def legend_below(figure: Any, axes: Any, columns: int) -> None:
    """One legend for all panels."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)

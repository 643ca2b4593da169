"""A comparison of several seeds and learning rates as plain text."""

from __future__ import annotations

from vopd.reporting.comparison import Comparison
from vopd.reporting.stability import price, stability, target_accuracy
from vopd.reporting.tables import comparison_text, format_table


def grid_text(comparison: Comparison) -> str:
    """What `comparison_text` says, then how stable the runs were and what a given accuracy costs."""
    return "\n\n".join([comparison_text(comparison), _stability_text(comparison), _price_text(comparison)])


def _stability_text(comparison: Comparison) -> str:
    rows = []
    for name in comparison.estimators:
        found = stability(comparison, name)
        cells = (found.less_accurate, found.farther, found.broke_off)
        rows.append([name, *(f"{count} of {found.runs}" for count in cells)])
    headers = ["", "less accurate than the start", "farther from the teacher", "broke off"]
    return f"Stability\n\n{format_table(headers, rows)}"


def _price_text(comparison: Comparison) -> str:
    target = target_accuracy(comparison)
    rows = []
    for name in comparison.estimators:
        found = price(comparison, name, target)
        if found.samples is None or found.seconds is None:
            cells = ["-", "-"]
        else:
            cells = [f"{found.samples:.0f}", f"{found.seconds:.0f} s"]
        rows.append([name, f"{found.reached} of {found.runs}", *cells])
    table = format_table(["", "runs that reach it", "samples", "training time"], rows)
    return f"Price of {100 * target:.0f} % accuracy: medians of the runs that reach it, at their checkpoints\n\n{table}"

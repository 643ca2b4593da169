"""Plain-text tables: readable in a terminal, in a log and in a mail."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from vopd.estimators.policy_gradient import OPD

from .comparison import Comparison

_ABSENT = "-"
_DIFFERENCE_NOTE = (
    "Same seed, same prompts. Intervals and p-values say how sure the problems are, not the training seeds."
)


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an aligned table: first column to the left, the others to the right, a rule under the headers."""
    widths = [max(len(row[column]) for row in [headers, *rows]) for column in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        others = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "  ".join([first, *others]).rstrip()

    return "\n".join([line(headers), "-" * (sum(widths) + 2 * (len(widths) - 1)), *map(line, rows)])


def comparison_text(comparison: Comparison) -> str:
    """Return everything a comparison says, in order of what it says most surely: divergence and noise, accuracy, time.

    With several seeds, means over the seeds, followed by paired differences from the first estimator.
    """
    sections = [
        ("Held-out reverse KL and gradient noise", _divergence_table(comparison)),
        ("Accuracy on held-out problems, greedy", _accuracy_table(comparison)),
        ("Time", _time_table(comparison)),
    ]
    if len(comparison.seeds) > 1 and len(comparison.estimators) > 1:
        differences = format_table(*difference_rows(comparison)) + "\n" + _DIFFERENCE_NOTE
        sections.insert(2, (f"Paired differences from {comparison.estimators[0]}", differences))
    return "\n\n".join(f"{title} ({comparison.seeds_label})\n\n{table}" for title, table in sections)


def _divergence_table(comparison: Comparison) -> str:
    noise = comparison.relative_noise()
    single = len(comparison.seeds) == 1
    rows = [["student before", str(comparison.start.reverse_kl), _ABSENT]]
    for name in comparison.estimators:
        divergence = str(comparison.runs_of(name)[0].reverse_kl) if single else f"{comparison.reverse_kl(name):.3f}"
        rows.append([name, divergence, f"{noise[name]:.3f}" if name in noise else _ABSENT])
    note = "Reverse KL: exact, nats a token, on the student's own samples; interval over problems.\n" * single
    reference = OPD.name if OPD.name in noise else "the noisiest"
    note += f"Noise: variance of the gradient from drawing the tokens, at the student before; {reference} = 1."
    return format_table(["", "reverse KL", "gradient noise"], rows) + "\n" + note


def _accuracy_table(comparison: Comparison) -> str:
    start = comparison.start
    rows = [["student before", str(start.student_score)]]
    rows += [[name, str(comparison.score(name))] for name in comparison.estimators]
    rows += [["teacher", str(start.teacher_score)]]
    note = f"{len(start.student_outcomes)} problems, 95 % interval over problems."
    return format_table(["", "accuracy"], rows) + "\n" + note


def _time_table(comparison: Comparison) -> str:
    rows = [
        [name, f"{statistics.mean(run.seconds for run in comparison.runs_of(name)):.0f} s"]
        for name in comparison.estimators
    ]
    return format_table(["", "training, one run"], rows)


def difference_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of every estimator less the first, seed by seed and problem by problem."""
    reference, *others = comparison.estimators
    rows = []
    for name in others:
        gaps = comparison.reverse_kl_differences(name, reference)
        spread = f" ({min(gaps):+.3f} to {max(gaps):+.3f})" if len(gaps) > 1 else ""
        lower = f"{sum(gap < 0 for gap in gaps)} of {len(gaps)}"
        accuracy = str(comparison.accuracy_difference(name, reference))
        rows.append([name, f"{sum(gaps) / len(gaps):+.3f}{spread}", lower, accuracy])
    return ["", "reverse KL (range over seeds)", "lower in seeds", "accuracy [95 % over problems]"], rows

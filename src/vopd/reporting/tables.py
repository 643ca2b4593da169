"""Tables of a comparison, for its page too, and plain-text tables: readable in a terminal, in a log and in a mail."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from vopd.estimators.policy_gradient import OPD

from .comparison import Comparison
from .stability import PRICE_NOTE, stability_rows

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


class Table(NamedTuple):
    """A table, what it is called, and what stands below it."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def comparison_text(comparison: Comparison) -> str:
    """Return the tables of a comparison as text; paired differences from several seeds on."""
    tables = comparison_tables(comparison, differences=len(comparison.seeds) > 1)
    return "\n\n".join(
        f"{table.title}\n\n{format_table(table.headers, table.rows)}\n{table.note}".rstrip() for table in tables
    )


def comparison_tables(comparison: Comparison, *, differences: bool = True) -> list[Table]:
    """Return everything a comparison says, in order of what it says most surely: divergence and noise, accuracy, time.

    With several seeds, means over the seeds; `differences` are paired, from the first estimator. How surely runs end
    well comes last, where accuracy was measured along them.
    """
    builders = [_divergence_table, _accuracy_table, _time_table]
    if differences and len(comparison.estimators) > 1:
        builders.insert(2, _difference_table)
    found = [build(comparison) for build in builders]
    tables = [table._replace(title=f"{table.title} ({comparison.seeds_label})") for table in found]
    if any(run.accuracy_curve for run in comparison.runs):
        tables.append(Table("Stability and price", *stability_rows(comparison), PRICE_NOTE))
    return tables


def _divergence_table(comparison: Comparison) -> Table:
    noise = comparison.relative_noise()
    single = len(comparison.seeds) == 1
    rows = [["student before", str(comparison.start.reverse_kl), _ABSENT]]
    for name in comparison.estimators:
        divergence = str(comparison.runs_of(name)[0].reverse_kl) if single else f"{comparison.reverse_kl(name):.3f}"
        rows.append([name, divergence, f"{noise[name]:.3f}" if name in noise else _ABSENT])
    note = "Reverse KL: exact, nats a token, on the student's own samples; interval over problems.\n" * single
    reference = OPD.name if OPD.name in noise else "the noisiest"
    note += f"Noise: variance of the gradient from drawing the tokens, at the student before; {reference} = 1."
    return Table("Held-out reverse KL and gradient noise", ["", "reverse KL", "gradient noise"], rows, note)


def _accuracy_table(comparison: Comparison) -> Table:
    start = comparison.start
    rows = [["student before", str(start.student_score)]]
    rows += [[name, str(comparison.score(name))] for name in comparison.estimators]
    rows += [["teacher", str(start.teacher_score)]]
    note = f"{len(start.student_outcomes)} problems, 95 % interval over problems."
    return Table("Accuracy on held-out problems, greedy", ["", "accuracy"], rows, note)


def _time_table(comparison: Comparison) -> Table:
    rows = [
        [name, f"{statistics.mean(run.seconds for run in comparison.runs_of(name)):.0f} s"]
        for name in comparison.estimators
    ]
    return Table("Time", ["", "training, one run"], rows)


def _difference_table(comparison: Comparison) -> Table:
    """Every estimator less the first, seed by seed and problem by problem."""
    reference, *others = comparison.estimators
    rows = []
    for name in others:
        gaps = comparison.reverse_kl_differences(name, reference)
        spread = f" ({min(gaps):+.3f} to {max(gaps):+.3f})" if len(gaps) > 1 else ""
        lower = f"{sum(gap < 0 for gap in gaps)} of {len(gaps)}"
        accuracy = str(comparison.accuracy_difference(name, reference))
        rows.append([name, f"{sum(gaps) / len(gaps):+.3f}{spread}", lower, accuracy])
    headers = ["", "reverse KL (range over seeds)", "lower in seeds", "accuracy [95 % over problems]"]
    return Table(f"Paired differences from {reference}", headers, rows, _DIFFERENCE_NOTE)

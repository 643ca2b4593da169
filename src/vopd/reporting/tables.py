"""Tables of a comparison, for the terminal and the page, and plain-text tables that fit a terminal or a log."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vopd.errors import counted
from vopd.estimators.policy_gradient import OPD

from .comparison import Comparison, Run
from .stability import stability_note, stability_rows

_ABSENT = "-"
_DIFFERENCE_NOTE = (
    "Same seed, same prompts. Intervals and p-values are over problems; they do not cover the training seeds."
)


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an aligned table: first column left-aligned, the others right-aligned, a rule under the headers."""
    widths = [max(len(row[column]) for row in [headers, *rows]) for column in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        others = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "  ".join([first, *others]).rstrip()

    return "\n".join([line(headers), "-" * (sum(widths) + 2 * (len(widths) - 1)), *map(line, rows)])


class Table(NamedTuple):
    """A table with its title and the note below it."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def comparison_text(comparison: Comparison) -> str:
    """Return the tables of a comparison as text, with paired differences if there are several seeds."""
    tables = comparison_tables(comparison, differences=len(comparison.seeds) > 1)
    return "\n\n".join(
        f"{table.title}\n\n{format_table(table.headers, table.rows)}\n{table.note}".rstrip() for table in tables
    )


def comparison_tables(comparison: Comparison, *, differences: bool = True) -> list[Table]:
    """Return all tables of a comparison, the most certain first: divergence and noise, accuracy, time.

    With several seeds, means over the seeds. `differences` adds paired differences from the first estimator. Stability
    comes last, if accuracy was measured at the checkpoints.
    """
    builders = [_divergence_table, _accuracy_table, _time_table]
    if differences and len(comparison.estimators) > 1:
        builders.insert(2, _difference_table)
    found = [build(comparison) for build in builders]
    tables = [table._replace(title=f"{table.title} ({comparison.seeds_label})") for table in found]
    if any(run.accuracy_curve for run in comparison.runs):
        tables.append(Table("Stability and samples needed", *stability_rows(comparison), stability_note(comparison)))
    return tables


def _divergence_table(comparison: Comparison) -> Table:
    noise = comparison.relative_noise()
    single = len(comparison.seeds) == 1
    rows = [["student before", str(comparison.start.reverse_kl), _ABSENT]]
    for name in comparison.estimators:
        divergence = str(comparison.runs_of(name)[0].reverse_kl) if single else f"{comparison.reverse_kl(name):.3f}"
        rows.append([name, divergence, f"{noise[name]:.3f}" if name in noise else _ABSENT])
    title, headers = "Held-out reverse KL and gradient noise", ["", "reverse KL", "gradient noise"]
    note = "Reverse KL: exact, nats/token, on the student's own samples; interval over problems.\n" * single
    if not noise:
        return Table("Held-out reverse KL", headers[:2], [row[:2] for row in rows], note.rstrip())
    reference = OPD.name if OPD.name in noise else "the noisiest"
    note += f"Noise: gradient variance from sampling the tokens, at the student before training; {reference} = 1."
    return Table(title, headers, rows, note)


def _accuracy_table(comparison: Comparison) -> Table:
    start = comparison.start
    rows = [["student before", str(start.student_score)]]
    rows += [[name, str(comparison.score(name))] for name in comparison.estimators]
    rows += [["teacher", str(start.teacher_score)]]
    note = f"{counted(len(start.student_outcomes), 'problem')}, 95 % interval over problems."
    scores = [start.student_score, start.teacher_score, *map(comparison.score, comparison.estimators)]
    if any(score.low == score.high for score in scores):
        note += "\nAn interval of width 0: every problem had the same outcome, which does not make the value certain."
    return Table("Accuracy on held-out problems, greedy", ["", "accuracy"], rows, note)


def _time_table(comparison: Comparison) -> Table:
    """Processor seconds, and wall time if runs did not share the machine or if there is nothing else."""
    columns: dict[str, Callable[[Run], float]] = {}
    if all(run.processor_seconds is not None for run in comparison.runs):
        columns["processor seconds"] = lambda run: run.processor_seconds or 0.0
    if comparison.jobs == 1 or not comparison.by_processor:
        columns["wall time"] = lambda run: run.seconds
    rows = [
        [name, *(f"{statistics.mean(map(seconds, comparison.runs_of(name))):.0f} s" for seconds in columns.values())]
        for name in comparison.estimators
    ]
    note = "Optimizer steps of one run, rollouts included, without loading, saving and measuring."
    if comparison.jobs != 1 and not comparison.by_processor:
        note += "\nRuns may have shared the processor: do not compare their wall time."
    return Table("Training time of one run", ["", *columns], rows, note)


def _difference_table(comparison: Comparison) -> Table:
    """Every estimator minus the first, per seed and per problem."""
    reference, *others = comparison.estimators
    rows = []
    for name in others:
        gaps = comparison.reverse_kl_differences(name, reference)
        spread = f" ({min(gaps):+.3f} to {max(gaps):+.3f})" if len(gaps) > 1 else ""
        lower = f"{sum(gap < 0 for gap in gaps)} of {len(gaps)}"
        accuracy = str(comparison.accuracy_difference(name, reference))
        rows.append([name, f"{sum(gaps) / len(gaps):+.3f}{spread}", lower, accuracy])
    headers = ["", "reverse KL (range over seeds)", "lower in seeds", "accuracy [95 % over problems]"]
    return Table(f"Paired difference from {reference}", headers, rows, _DIFFERENCE_NOTE)

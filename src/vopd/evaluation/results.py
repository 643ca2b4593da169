"""Results of an evaluation: results.json, the printed table, and the paired comparison of two evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vopd.errors import DataError, counted
from vopd.reporting.run_files import read_json
from vopd.reporting.tables import format_table
from vopd.statistics import Difference, paired_difference

from .scores import FORM_TEMPLATES


def load_results(path: str | Path) -> dict[str, Any]:
    """Read a results.json, given as a file or as the folder of an evaluation.

    Raises:
        DataError: there is no results.json, or it is not an evaluation's.
    """
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"there is no '{path}'; give the folder of a finished evaluation (vopd eval)")
    results = read_json(path)
    if "results" not in results or "benchmarks" not in results:
        raise DataError(f"'{path}' is not the results.json of an evaluation; give the folder of a vopd eval run")
    return results


def compare_results(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Difference]:
    """avg@k of the second evaluation minus the first, paired by problem, for each benchmark that both have.

    If an evaluation has several checkpoints, the last one is used. Problems left out of either are left out of both.

    Raises:
        DataError: there is no common benchmark, or a benchmark has different questions in the two.
    """
    both = (first, second)
    prints = [{row["name"]: row["fingerprint"] for row in results["benchmarks"]} for results in both]
    shares = [{row["benchmark"]: row["per_problem"] for row in results["results"]} for results in both]
    common = [name for name in prints[0] if name in prints[1]]
    if not common:
        raise DataError(
            f"nothing to compare: one evaluation has {', '.join(prints[0])}, the other {', '.join(prints[1])}; "
            "evaluate both on the same benchmark"
        )
    differences = {}
    for name in common:
        if prints[0][name] != prints[1][name]:
            raise DataError(
                f"the questions of {name} are not the same in the two evaluations; evaluate both on the same version"
            )
        ids = [identity for identity in shares[0][name] if identity in shares[1][name]]
        if not ids:
            raise DataError(f"no problem of {name} was scored in both evaluations; check its reference answers")
        pair = [[share[name][identity] for identity in ids] for share in shares]
        differences[name] = paired_difference(pair[1], pair[0])
    return differences


def table_rows(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table: avg@k, pass@k and maj@k at the number of samples, each with its interval."""
    header = ["checkpoint", "benchmark", "metric", "percent", "95 % interval"]
    rows = []
    for row in results["results"]:
        k = row["samples"]
        scores = {f"avg@{k}": row["avg_at_k"]}
        if k > 1:
            scores |= {f"pass@{k}": row["pass_at_k"][str(k)], f"maj@{k}": row["maj_at_k"]}
        for name, score in scores.items():
            value, low, high = (f"{100 * score[part]:.1f}" for part in ("value", "low", "high"))
            rows.append([row["checkpoint"], row["benchmark"], name, value, f"[{low}, {high}]"])
    return header, rows


def remarks(results: dict[str, Any]) -> list[str]:
    """The lines below the table: counts and rates, problems seen in training, missing answers."""
    lines = [_rates(row) for row in results["results"]]
    for name, overlaps in results.get("contamination", {}).items():
        occur = "occurs" if len(overlaps) == 1 else "occur"
        lines.append(f"{name}: {counted(len(overlaps), 'problem')} {occur} among the training prompts")
    kinds = {benchmark["name"]: benchmark["kind"] for benchmark in results["benchmarks"]}
    for name in dict.fromkeys(row["benchmark"] for row in results["results"] if row["format_rate"] < 0.5):
        form = FORM_TEMPLATES.get(kinds[name])
        request = f"; ask for one in the prompt, for example with --template '{form}'" if form else ""
        lines.append(f"hint: most completions of {name} give no readable answer{request}")
    return lines


def _rates(row: dict[str, Any]) -> str:
    parts = [
        counted(row["problems"], "problem"),
        f"answers in the requested form {row['format_rate']:.1%}",
        f"cut off at the length limit {row['truncation_rate']:.1%}",
        f"mean length {row['mean_length']:.0f} tokens",
    ]
    if row["ungradable"]:
        parts.append(f"{counted(row['ungradable'], 'problem')} left out because of an unreadable reference answer")
    if row["timed_out"]:
        parts.append(f"{counted(row['timed_out'], 'comparison')} exceeded the time limit")
    return f"{row['checkpoint']}, {row['benchmark']}: " + ", ".join(parts)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: with rich on a terminal, as plain text otherwise."""
    import sys

    if not sys.stdout.isatty():
        print(format_table(header, rows))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: the brackets of an interval are not markup
    Console().print(table)


def comparison_rows(differences: dict[str, Difference]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the paired differences from an earlier evaluation."""
    return ["benchmark", "avg@k, this - earlier"], [[name, str(found)] for name, found in differences.items()]

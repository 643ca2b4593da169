"""Comparisons, verdicts and tables from the committed records: `python -m studies.claims.report`, in seconds."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from studies.claims.comparisons import Compared, Runs, compare_all, write_comparisons
from studies.claims.precision import precision, precision_table
from studies.claims.verdicts import Evidence, Verdict, all_verdicts
from vopd.reporting.tables import format_table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Kept:
    """The records that are committed, and what follows from them."""

    records: list[dict[str, Any]]
    study: dict[str, Any]
    fixed: dict[str, Any]
    cost: dict[str, Any]

    @property
    def runs(self) -> Runs:
        return Runs(self.records, self.study["starts"], self.study["best_rates"])

    def evidence(self, compared: list[Compared]) -> Evidence:
        return Evidence(self.runs, compared, self.fixed, self.cost)


def read_kept(folder: Path = RESULTS) -> Kept:
    """The committed records of a folder."""
    return Kept(*(json.loads((folder / f"{name}.json").read_text()) for name in ("runs", "study", "fixed", "cost")))


def summary_table(runs: Runs) -> str:
    """Means over seeds of every estimator, as text."""
    rows = []
    for setting, start in runs.starts.items():
        rows.append([f"{setting}: student before", "", "", f"{start['reverse_kl']:.4f}", percent(start["accuracy"])])
        for rates, name in runs.cells(setting):
            columns = [runs.values(setting, rates, [name], what)[0] for what in ("reverse_kl", "accuracy")]
            distance, right = (sum(values) / len(values) for values in columns)
            rate = f"{runs.rate(setting, rates, name):g}"
            rows.append([f"{setting}: {name}", rate, str(len(columns[0])), f"{distance:.4f}", percent(right)])
        rows.append([f"{setting}: teacher", "", "", "0", percent(start["teacher_accuracy"])])
    return format_table(["", "rate", "seeds", "reverse KL", "greedy accuracy"], rows)


def percent(value: float) -> str:
    """A share, as the documents write it."""
    return f"{100 * value:.1f} %"


def verdict_text(found: Verdict) -> str:
    """A verdict with its rules and its numbers."""
    marks = {1: "+", 0: "o", -1: "-"}
    lines = [f"({found.claim}) {found.statement}: {found.verdict.upper()}"]
    lines += [f"    supported if {found.supported_if}", f"    refuted if {found.refuted_if}"]
    return "\n".join([*lines, *(f"    {marks[part.side]} {part.text}" for part in found.parts)])


def as_record(found: Verdict) -> dict[str, Any]:
    """A verdict as JSON."""
    return {**asdict(found), "verdict": found.verdict}


def write_report(folder: Path) -> str:
    """Write comparisons.csv, verdicts.json, precision.json and summary.txt beside the records; returns the last."""
    kept = read_kept(folder)
    compared = compare_all(kept.runs)
    verdicts = all_verdicts(kept.evidence(compared))
    write_comparisons(compared, folder / "comparisons.csv")
    measured = precision(kept.records, kept.study["best_rates"])
    for name, value in {"verdicts": list(map(as_record, verdicts)), "precision": measured}.items():
        (folder / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n", encoding="ascii")
    parts = [summary_table(kept.runs), precision_table(measured), *map(verdict_text, verdicts)]
    text = "\n\n".join(parts) + "\n"
    (folder / "summary.txt").write_text(text, encoding="utf-8")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    print(write_report(parser.parse_args().results))


if __name__ == "__main__":
    main()

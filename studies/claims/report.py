"""Tables and verdicts from what the study measured: `python -m studies.claims.report`.

Reads runs/claims and writes studies/claims/results. Of an unfinished study it reports the runs that there are, and
says which are missing.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from studies.claims import design
from studies.claims.cost import COST_FILE
from studies.claims.fixed import FIXED_FILE
from studies.claims.run import SMALL, Study
from studies.claims.tables import (
    Results,
    compare_all,
    read_runs,
    read_starts,
    read_timings,
    write_comparisons,
    write_json,
)
from studies.claims.verdicts import Evidence, Verdict, all_verdicts, costs
from vopd.experiments.grid import is_finished
from vopd.reporting.tables import format_table

RESULTS = Path(__file__).parent / "results"


def missing_runs(study: Study) -> list[str]:
    """Runs of the design that are not finished; those at own best rates only once the pilot has chosen them."""
    return [
        f"{name}/{run.directory}"
        for name, wanted in study.wanted().items()
        for run in study.runs(name, wanted)
        if not is_finished(study.output / name / run.directory)
    ]


def study_facts(study: Study) -> dict[str, Any]:
    """Where and with what the training runs were done; sessions of one study must have been one commit."""
    path = study.output / "sessions.jsonl"  # which a session writes at its end
    sessions = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    missing = missing_runs(study)
    total = sum(len(set(wanted)) for wanted in study.wanted().values())
    return {
        "sessions": [session["facts"] for session in sessions],
        "size": asdict(study.size),
        "seeds": list(range(study.size.seeds)),
        "rates": list(design.RATES),
        "common_rate": design.COMMON_RATE,
        "top_k": design.TOP_K,
        "runs": total - len(missing),
        "missing": missing,
    }


def summary_table(results: Results) -> str:
    """Means over seeds of every cell of the design, as text."""
    rows = []
    for setting, start in results.starts.items():
        before = [f"{start['reverse_kl']:.3f}", _percent(start["student_accuracy"])]
        rows.append([f"{setting}: student before", "", "", *before, "", ""])
        cells = dict.fromkeys((r["estimator"], r["rate"]) for r in results.runs if r["setting"] == setting)
        for name, rate in cells:
            runs = results.of(setting, name, rate)
            if not runs:
                continue
            distance, *right = (
                sum(run[key] for run in runs) / len(runs) for key in ("reverse_kl", "accuracy", "sampled_accuracy")
            )
            fallen = sum(run["accuracy"] < start["student_accuracy"] for run in runs)
            means = [f"{rate:g}", str(len(runs)), f"{distance:.3f}", *map(_percent, right), str(fallen)]
            rows.append([f"{setting}: {name}", *means])
        rows.append([f"{setting}: teacher", "", "", "0", _percent(start["teacher_accuracy"]), "", ""])
    return format_table(["", "rate", "seeds", "reverse KL", "greedy", "sampled", "fell below start"], rows)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def verdict_text(verdicts: list[Verdict]) -> str:
    """Every verdict with its rule and its numbers."""
    parts = []
    for found in verdicts:
        lines = [f"({found.claim}) {found.statement}: {found.verdict.upper()}", f"    rule: {found.rule}"]
        parts.append("\n".join([*lines, *(f"    {number}" for number in found.numbers)]))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, default=Path("runs/claims"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--steps", type=int)
    arguments = parser.parse_args()
    size = SMALL if arguments.small else design.Size()
    size = replace(size, steps=arguments.steps) if arguments.steps else size
    study = Study(arguments.input.resolve(), size)
    runs, starts = read_runs(study), read_starts(study)
    results = Results(runs, starts, study.best_rates())
    compared = compare_all(results)
    fixed = json.loads((study.output / FIXED_FILE).read_text())
    measured_with = fixed.pop("facts", None)
    cost_path = study.output / COST_FILE
    cost = json.loads(cost_path.read_text()) if cost_path.is_file() else None
    evidence = Evidence(results, compared, fixed, cost)
    verdicts, timed = all_verdicts(evidence), costs(evidence)
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_json({**study_facts(study), "fixed": measured_with}, arguments.output / "study.json")
    write_json({"starts": starts, "best_rates": results.best, "runs": runs}, arguments.output / "runs.json")
    write_json(fixed, arguments.output / "fixed.json")
    write_json([asdict(verdict) for verdict in verdicts], arguments.output / "verdicts.json")
    # Timings differ from run to run: everything made of them is in a file of its own.
    write_json({"verdict": asdict(timed), "cost": cost, "runs": read_timings(study)}, arguments.output / "timings.json")
    write_comparisons(compared, arguments.output / "comparisons.csv")
    text = f"{summary_table(results)}\n\n{verdict_text(verdicts)}\n"
    (arguments.output / "summary.txt").write_text(text, encoding="utf-8")
    print(f"{text}\n{verdict_text([timed])}")


if __name__ == "__main__":
    main()

"""Keep what the study measured: `python -m studies.claims.collect` takes it from runs/claims into results.

An unfinished study is refused: no verdict is computed before every run of the plan is finished.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from studies.claims import design
from studies.claims.cost import COST_FILE
from studies.claims.fixed import FIXED_FILE, missing_along
from studies.claims.records import write_records
from studies.claims.repeat import REPEATED_FILE
from studies.claims.report import RESULTS
from studies.claims.run import SESSIONS_FILE, Study, said
from vopd.experiments.grid import START, measured_of
from vopd.reporting.run_files import read_json

RUNS_FILE, STUDY_FILE = "runs.json", "study.json"


def unfinished(study: Study) -> list[str]:
    """What is still missing, in sentences."""
    found = [said(study.missing(), 2)] if any(study.missing().values()) else []
    fixed = read_json(study.output / FIXED_FILE)
    if set(fixed) != set(study.settings) or missing_along(study, fixed):
        found.append("the measurements at fixed parameters: python -m studies.claims.fixed")
    if not (study.output / COST_FILE).is_file():
        found.append("the costs: python -m studies.claims.cost")
    if not (study.output / REPEATED_FILE).is_file():
        found.append("repeated runs: python -m studies.claims.repeat")
    return found


def study_facts(study: Study) -> dict[str, Any]:
    """Where and with what the runs were done, what they were, and the students before them."""
    lines = (study.output / SESSIONS_FILE).read_text().splitlines()
    sessions = [json.loads(line) for line in lines]
    return {
        "sessions": [
            {**session["facts"], "seconds": session["seconds"], "jobs": session["jobs"]} for session in sessions
        ],
        "size": sessions[-1]["size"],
        "best_rates": study.best,
        "starts": {name: start_of(study, name) for name in study.settings},
    }


def start_of(study: Study, name: str) -> dict[str, float]:
    """A setting's student before training, and its teacher."""
    measured = measured_of(study.output / name / START)
    return {
        "accuracy": _share(measured["student_outcomes"]),
        "teacher_accuracy": _share(measured["teacher_outcomes"]),
        "reverse_kl": measured["reverse_kl"]["value"],
    }


def _share(outcomes: list[bool]) -> float:
    return sum(outcomes) / len(outcomes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, default=Path("runs/claims"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    study = Study(arguments.input.resolve(), design.SMALL if arguments.small else design.Size())
    if missing := unfinished(study):
        print("the study is unfinished, so there are no verdicts yet. " + "; ".join(missing))
        return 1
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_records(study.records(), arguments.output / RUNS_FILE)
    for name, value in {
        STUDY_FILE: study_facts(study),
        FIXED_FILE: read_json(study.output / FIXED_FILE),
        COST_FILE: read_json(study.output / COST_FILE),
        REPEATED_FILE: read_json(study.output / REPEATED_FILE),
    }.items():
        (arguments.output / name).write_text(json.dumps(value, indent=1) + "\n", encoding="ascii")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

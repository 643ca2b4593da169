"""Repeat two runs of every setting and compare them bit for bit: `python -m studies.claims.repeat`.

Compared are the trained weights, the log of the training (times aside) and what was measured. Writes repeated.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from studies.claims import design
from studies.claims.records import record_of
from studies.claims.run import ENTRY, Study, facts
from vopd.experiments.grid import GridRun, run_grid

REPEATED_FILE = "repeated.json"
ESTIMATORS = ("vopd", "vopd_optimal")
_LOGGED = ("loss", "grad_norm", "reverse_kl", "sampled_reverse_kl")


def repeat(study: Study, name: str, output: Path, jobs: int) -> list[dict[str, Any]]:
    """Run two runs of a setting again in `output`, and say of each whether it came out the same."""
    wanted = [(estimator, study.best[name][estimator], design.FIRST_SEED) for estimator in ESTIMATORS]
    setting, folder = study.settings[name], output / name
    measurement = design.write_problems(setting, folder, study.size, [design.FIRST_SEED])
    again = [design.grid_run(setting, folder, study.size, *what) for what in wanted]
    run_grid(again, folder, measurement, processes=jobs, entry=ENTRY, say=lambda line: print(line, flush=True))
    return [{"setting": name, "run": run.directory, **same(name, run, study.output / name, folder)} for run in again]


def same(name: str, run: GridRun, before: Path, after: Path) -> dict[str, bool]:
    """Whether weights, log and measurements of a run are equal in two folders."""

    def weights(folder: Path) -> bytes:
        return (folder / run.directory / "model" / "model.safetensors").read_bytes()

    def log(folder: Path) -> list[list[Any]]:
        lines = (folder / run.directory / "metrics.jsonl").read_text().splitlines()
        return [[record.get(key) for key in _LOGGED] for record in map(json.loads, lines)]

    return {
        "weights": weights(before) == weights(after),
        "log": log(before) == log(after),
        "measured": record_of(name, run, before) == record_of(name, run, after),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/claims"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    study = Study(arguments.output.resolve(), design.SMALL if arguments.small else design.Size())
    folder = study.output / "repeated"
    found = [entry for name in study.settings for entry in repeat(study, name, folder, arguments.jobs)]
    (study.output / REPEATED_FILE).write_text(json.dumps({"runs": found, "facts": facts()}, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 0 if all(entry[part] for entry in found for part in ("weights", "log", "measured")) else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""The training runs of the claims study: `python -m studies.claims.run --output runs/claims --jobs 2`.

It says what is missing and how long that takes, and does it. May be stopped and started again at any time: finished
runs are not done again.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from studies.claims import design
from studies.claims.design import SMALL, Size, Wanted
from studies.claims.records import Record, records_of
from vopd.experiments.grid import GridRun, is_finished, run_grid

ENTRY = "studies.claims.one_run"
SESSIONS_FILE = "sessions.jsonl"
# Processor seconds of a run and its measurement, on an Intel Xeon; only to say how long the study will take.
SECONDS = {"main": 60, "larger": 65, "sorting": 30}


class Study:
    """The settings with their folders and runs."""

    def __init__(self, output: Path, size: Size) -> None:
        self.output, self.size = output, size
        self.settings = design.settings()
        pilot = design.committed_pilot()
        self.best = {name: design.best_rates(pilot, name) for name in self.settings}

    def wanted(self) -> dict[str, list[Wanted]]:
        """All runs of every setting."""
        return {name: design.planned(name, self.best[name], self.size) for name in self.settings}

    def runs(self, name: str, wanted: Sequence[Wanted]) -> list[GridRun]:
        """Runs of one setting with their options."""
        return [design.grid_run(self.settings[name], self.output / name, self.size, *what) for what in wanted]

    def missing(self) -> dict[str, list[Wanted]]:
        """The runs that are not finished."""
        return {
            name: [what for what, run in zip(wanted, self.runs(name, wanted), strict=True)
                   if not is_finished(self.output / name / run.directory)]
            for name, wanted in self.wanted().items()
        }  # fmt: skip

    def records(self) -> list[Record]:
        """What is kept of every finished run."""
        return [record for name, wanted in self.wanted().items()
                for record in records_of(name, self.runs(name, wanted), self.output / name)]  # fmt: skip

    def run(self, jobs: int) -> None:
        """Do all runs, seed by seed over the settings, so that a study that is cut short has whole seeds."""
        wanted = self.wanted()
        seeds = {name: sorted({seed for _, _, seed in runs}) for name, runs in wanted.items()}
        measurements = {
            name: design.write_problems(setting, self.output / name, self.size, seeds[name])
            for name, setting in self.settings.items()
        }
        for seed in max(seeds.values(), key=len):
            for name, runs in wanted.items():
                if some := self.runs(name, [run for run in runs if run[2] == seed]):
                    print(f"{time.strftime('%H:%M:%S')} {name}, seed {seed}", flush=True)
                    run_grid(some, self.output / name, measurements[name], processes=jobs, entry=ENTRY, say=_say)


def _say(line: str) -> None:
    print(line, flush=True)


def said(missing: dict[str, list[Wanted]], jobs: int) -> str:
    """How many runs are missing, and how long they take."""
    parts = [f"{len(runs)} of {name}" for name, runs in missing.items() if runs]
    if not parts:
        return "no run is missing"
    minutes = sum(SECONDS[name] * len(runs) for name, runs in missing.items()) / 60
    return (
        f"missing runs: {', '.join(parts)}; about {minutes / 60:.1f} core-hours, or {minutes / jobs:.0f} minutes with "
        f"{jobs} at a time on idle cores"
    )


def facts() -> dict[str, Any]:
    """Where and with what the study ran."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()

    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.processor())  # fmt: skip
    return {
        "commit": git("rev-parse", "HEAD"),
        "changed_files": git("status", "--porcelain", "--untracked-files=no").splitlines(),
        "date": time.strftime("%Y-%m-%d"),
        "processor": model,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/claims"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="a study of minutes that shows nothing but that it runs")
    parser.add_argument("--missing", action="store_true", help="say what is missing and do nothing")
    arguments = parser.parse_args()
    study = Study(arguments.output.resolve(), SMALL if arguments.small else Size())
    print(said(study.missing(), arguments.jobs))
    if arguments.missing:
        return
    study.output.mkdir(parents=True, exist_ok=True)
    started = time.time()
    record = {"facts": facts(), "size": asdict(study.size), "jobs": arguments.jobs, "started": started}
    try:
        study.run(arguments.jobs)
    finally:
        with (study.output / SESSIONS_FILE).open("a") as file:
            file.write(json.dumps({**record, "seconds": round(time.time() - started)}) + "\n")


if __name__ == "__main__":
    main()

"""The training runs of the claims study: `python -m studies.claims.run --output runs/claims --jobs 2`.

May be stopped and started again at any time: finished runs are not done again.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from studies.claims import design
from studies.claims.design import Setting, Size
from vopd.experiments.grid import GridRun, is_finished, measured_of, run_grid
from vopd.experiments.measure import Measurement

ENTRY = "studies.claims.one_run"
SMALL = Size(steps=10, seeds=2, problems=24, curve_problems=8, choice_problems=8, contexts=4, resamples=4)


class Study:
    """The three settings with their folders and measurements."""

    def __init__(self, output: Path, size: Size) -> None:
        self.output, self.size = output, size
        self.settings = design.settings()
        self.measurements: dict[str, Measurement] = {}

    def prepare(self) -> None:
        """Write the problems of every setting; the same each time."""
        for name, setting in self.settings.items():
            self.measurements[name] = design.write_problems(setting, self.output / name, self.size)

    def runs(self, name: str, wanted: Sequence[tuple[str, float, int]]) -> list[GridRun]:
        """Runs of one setting, each once."""
        setting: Setting = self.settings[name]
        return [design.grid_run(setting, self.output / name, self.size, *what) for what in dict.fromkeys(wanted)]

    def best_rates(self) -> dict[str, float]:
        """For each estimator the pilot's rate of least divergence, on problems that serve nothing else."""
        best = {}
        for name in design.MAIN:
            tried = {}
            for run in self.runs("main", [(name, rate, 0) for rate in design.RATES]):
                measured = measured_of(self.output / "main" / run.directory)
                tried[run.learning_rate] = measured.get("choice", {}).get("value", float("inf"))
            best[name] = min(tried, key=lambda rate: tried[rate])
        return best

    def wanted(self) -> dict[str, list[tuple[str, float, int]]]:
        """All runs by setting, as far as they are known: those at the own best rates only after the pilot."""
        seeds = self.size.seeds
        found = {"main": [*design.pilot_runs(), *design.common_runs((*design.MAIN, *design.CONTROLS), seeds)]}
        found |= {name: design.common_runs(design.FEW, seeds) for name in ("sorting", "larger")}
        if all(is_finished(self.output / "main" / run.directory) for run in self.runs("main", design.pilot_runs())):
            room = design.MOST_RUNS - sum(len(set(runs)) for runs in found.values())
            found["main"] += design.own_best_runs(self.best_rates(), room, seeds)
        return found

    def run(self, jobs: int) -> None:
        """Do all runs: the pilot, then seed by seed over the settings, then the own best rates."""
        self._grid("main", design.pilot_runs(), jobs)
        for seed in range(self.size.seeds):
            for name, wanted in self.wanted().items():
                common = [run for run in wanted if run[1:] == (design.COMMON_RATE, seed)]
                self._grid(name, common, jobs)
        for name, wanted in self.wanted().items():
            self._grid(name, wanted, jobs)

    def _grid(self, name: str, wanted: Sequence[tuple[str, float, int]], jobs: int) -> None:
        folder = self.output / name
        print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
        run_grid(self.runs(name, wanted), folder, self.measurements[name], processes=jobs, entry=ENTRY, say=_say)


def _say(line: str) -> None:
    print(line, flush=True)


def facts() -> dict[str, Any]:
    """Where and with what the study ran."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()

    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.processor())  # fmt: skip
    return {
        "commit": git("rev-parse", "HEAD"),
        "changed_files": git("status", "--porcelain").splitlines(),
        "date": time.strftime("%Y-%m-%d"),
        "processor": model,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/claims"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", type=int, help="another number of optimizer steps, to try things out")
    parser.add_argument("--small", action="store_true", help="a study of minutes that shows nothing but that it runs")
    arguments = parser.parse_args()
    design.check()
    size = SMALL if arguments.small else Size()
    size = replace(size, steps=arguments.steps) if arguments.steps else size
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    started = time.time()
    sessions = output / "sessions.jsonl"
    study = Study(output, size)
    study.prepare()
    record = {"facts": facts(), "size": asdict(size), "jobs": arguments.jobs, "started": started}
    try:
        study.run(arguments.jobs)
    finally:
        with sessions.open("a") as file:
            file.write(json.dumps({**record, "seconds": round(time.time() - started)}) + "\n")


if __name__ == "__main__":
    main()

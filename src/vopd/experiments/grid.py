"""A grid of runs on one recipe: estimators x seeds x learning rates, each an ordinary run directory.

A folder of a grid holds `held_out.jsonl`, `measurement.json`, `start/measured.json`, `configs/NAME.yaml` and, for
every run, the run directory NAME with measured.json. That file is written last: a run that has it is finished and
never done again, one that was killed goes on from its last whole checkpoint or is done anew.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vopd.errors import DataError, GuardError, NonFiniteError, require
from vopd.reporting.comparison import Comparison, Interval, Run, Start
from vopd.reporting.run_files import METRICS_FILE, read_metrics

from .jobs import Job, run_jobs
from .measure_models import MEASURED_FILE, Measurement, write_measured

MEASUREMENT_FILE = "measurement.json"
START = "start"
# The module that trains and measures one run; it lies above this room, so that it is known here by name only.
ENTRY = "vopd.experiments.compare_run"
_PROGRESS_SECONDS = 30.0
_BROKE_OFF = (NonFiniteError.exit_code, GuardError.exit_code)

Say = Callable[[str], None]


@dataclass(frozen=True)
class GridRun:
    """One run: what varies, its folder's name, and every option of `vopd train` that is not a default."""

    estimator: str
    seed: int
    learning_rate: float
    directory: str
    options: Mapping[str, Any]


def run_name(estimator: str, learning_rate: float, seed: int) -> str:
    """The folder of a run: says all that varies."""
    return f"{estimator}-lr{learning_rate:g}-seed{seed}"


def variant_name(run: GridRun, several_rates: bool) -> str:
    """What a comparison calls the run's group: the estimator, with its learning rate where there are several."""
    return f"{run.estimator} {run.learning_rate:g}" if several_rates else run.estimator


def run_grid(
    runs: Sequence[GridRun],
    folder: Path,
    measurement: Measurement,
    *,
    processes: int,
    entry: str = ENTRY,
    offline: bool = True,
    say: Say = print,
) -> None:
    """Do every run that is not finished, `processes` at a time, each in a process of one thread.

    A run whose training breaks off over a non-finite loss or gradient, or by a guard that stops it, is kept as failed;
    the others go on.

    Args:
        runs: all of the grid; each knows its folder.
        folder: of the grid; the file of held-out problems already lies where `measurement` says.
        offline: keep the Hugging Face Hub out; the models are local then.
        entry: module that is run as `python -m ENTRY --folder FOLDER --run NAME`, or without --run for the start.

    Raises:
        DataError: the folder holds runs that were measured otherwise.
        VOPDError: a run failed for any other reason; with the last line of its log.
    """
    prepare(runs, folder, measurement)
    jobs = [] if is_finished(folder / START) else [_job(entry, folder, START, offline)]
    waiting = [run for run in runs if not is_finished(folder / run.directory)]
    for run in waiting:
        _clear(folder / run.directory)
        jobs.append(_job(entry, folder, run.directory, offline))
    say(f"{len(runs)} runs, {len(runs) - len(waiting)} of them finished before")
    progress = _Progress(len(runs), len(runs) - len(waiting), say)
    run_jobs(jobs, processes, finished=progress.finished, tick=progress.tick, excused=_Excuse(folder, say))


def prepare(runs: Sequence[GridRun], folder: Path, measurement: Measurement) -> None:
    """Write the measurement and every run's configuration.

    Raises:
        DataError: the folder holds runs that were measured otherwise, or trained with other options.
    """
    yaml = require("yaml", "train")
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    (folder / "logs").mkdir(exist_ok=True)
    _keep(folder / MEASUREMENT_FILE, json.dumps(asdict(measurement), indent=1) + "\n")
    for run in runs:
        options = {
            **run.options, "estimator": run.estimator, "seed": run.seed, "learning_rate": run.learning_rate,
            "output_dir": str(folder), "run_name": run.directory,
        }  # fmt: skip
        _keep(folder / "configs" / f"{run.directory}.yaml", yaml.safe_dump(options))


def _keep(path: Path, text: str) -> None:
    """Write a file once: what is there must be the same, or finished runs would mean something else."""
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise DataError(f"{path} was written with other settings; choose a new run_name for a new comparison")
    path.write_text(text, encoding="utf-8")


def is_finished(folder: Path) -> bool:
    """Whether a run (or the start) was measured to its end."""
    return (folder / MEASURED_FILE).is_file()


def may_resume(folder: Path) -> bool:
    """Whether a run that was killed can go on: its newest valid checkpoint holds the optimizer too."""
    from vopd.training.saving.checkpoints import newest_valid  # which needs the extra `train`

    found = newest_valid(folder).path if folder.is_dir() else None
    return found is not None and (found / "optimizer.pt").is_file()


def _clear(folder: Path) -> None:
    """Remove what a killed run left, unless it can go on from there."""
    if folder.is_dir() and not may_resume(folder):
        shutil.rmtree(folder)


def _job(entry: str, folder: Path, name: str, offline: bool) -> Job:
    command = [entry, "--folder", str(folder), "--run", name]
    return Job(name, [command], folder / "logs" / f"{name}.log", offline)


class _Excuse:
    """Keeps a run that became non-finite as a failed one."""

    def __init__(self, folder: Path, say: Say) -> None:
        self.folder, self.say = folder, say

    def __call__(self, job: Job, code: int) -> bool:
        if code not in _BROKE_OFF:
            return False
        lines = job.log.read_text(errors="replace").strip().splitlines()
        write_measured(self.folder / job.name, {"failed": lines[-1] if lines else "broke off"})
        self.say(f"  {job.name}: broke off")
        return True


class _Progress:
    """Says how many runs are done, how long the last took and how long the rest may take."""

    def __init__(self, total: int, before: int, say: Say) -> None:
        self.total, self.done, self.before, self.say = total, before, before, say
        self.started = self.last = time.monotonic()

    def finished(self, job: Job, seconds: float) -> None:
        self.done += job.name != START
        self.say(f"  {job.name}: {seconds:.0f} s; {self.done} of {self.total}{self._left()}")

    def tick(self, jobs: Sequence[Job]) -> None:
        if jobs and time.monotonic() - self.last > _PROGRESS_SECONDS:
            self.last = time.monotonic()
            self.say(f"  running: {', '.join(job.name for job in jobs)}")

    def _left(self) -> str:
        new = self.done - self.before
        if new == 0:
            return ""
        minutes = (time.monotonic() - self.started) / new * (self.total - self.done) / 60
        return f", about {minutes:.0f} min left"


def measured_of(folder: Path) -> dict[str, Any]:
    """What was measured of a run or of the start."""
    measured: dict[str, Any] = json.loads((folder / MEASURED_FILE).read_text(encoding="ascii"))
    return measured


def collect(runs: Sequence[GridRun], folder: Path, settings: dict[str, Any]) -> Comparison:
    """The comparison of all finished runs.

    A failed run counts as right nowhere and as diverged: its reverse KL is infinite and it has no curve.

    Raises:
        DataError: the start was not measured, or no run is finished.
    """
    if not is_finished(folder / START):
        raise DataError(f"{folder} is not a comparison that was begun: its start was not measured")
    raw = measured_of(folder / START)
    start = Start(
        raw["student_outcomes"], raw["teacher_outcomes"], Interval(**raw["reverse_kl"]), raw["gradient_noise"]
    )
    several = len({run.learning_rate for run in runs}) > 1
    found = [_run(run, folder, start, several) for run in runs if is_finished(folder / run.directory)]
    if not found:
        raise DataError(f"{folder} has no finished run")
    return Comparison(settings, start, found)


def _run(run: GridRun, folder: Path, start: Start, several: bool) -> Run:
    measured, name = measured_of(folder / run.directory), variant_name(run, several)
    seconds = training_seconds(folder / run.directory)
    if "failed" in measured:
        nothing = Interval(float("inf"), float("inf"), float("inf"))
        return Run(name, run.seed, run.directory, [False] * len(start.student_outcomes), nothing, [], seconds)
    before = sum(start.student_outcomes) / len(start.student_outcomes)
    return Run(
        name, run.seed, run.directory, measured["outcomes"], Interval(**measured["reverse_kl"]),
        [(0, start.reverse_kl.value), *((step, value) for step, value in measured["curve"])], seconds,
        [(0, before), *((step, value) for step, value in measured["accuracy_curve"])],
    )  # fmt: skip


def training_seconds(folder: Path) -> float:
    """Seconds of all optimizer steps, rollouts included, without loading and saving."""
    if not (folder / METRICS_FILE).is_file():
        return 0.0
    parts = ("seconds/rollout", "seconds/scoring", "seconds/update")
    return sum(record.get(part, 0.0) for record in read_metrics(folder) for part in parts)

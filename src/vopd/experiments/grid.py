"""A grid of runs on one recipe: estimators x seeds x learning rates, each an ordinary run directory.

The folder of a grid has `held_out.jsonl`, `measurement.json`, `start/measured.json`, `configs/NAME.yaml` with
`NAME.contents.json` (digests of the data and models that the options name) and, for every run, the run folder NAME
with measured.json. That file is written last: a run that has it is finished and is not repeated; a run that was killed
resumes from its last valid checkpoint or starts over.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from vopd.atomic import write_whole
from vopd.errors import ConfigurationError, DataError, GuardError, NonFiniteError, counted, require
from vopd.estimators import ESTIMATORS, Estimator
from vopd.estimators.catalogue import spelled
from vopd.reporting.comparison import MEASUREMENT_FILE, Comparison, Run, Start
from vopd.reporting.run_files import MEASURED_FILE, METRICS_FILE, read_json, read_records
from vopd.reporting.run_report import processor_seconds, timing_split
from vopd.statistics import Interval

from .jobs import Job, last_line, run_jobs
from .measure import Measurement

START = "start"
ENTRY = "vopd.experiments.one_run"
_CONTENTS = ".contents.json"  # beside the options of a run
_RESERVED = (START, "logs", "configs", "report")
_PROGRESS_SECONDS = 10.0
# Exit codes of a training that crashed: a non-finite loss or gradient, or a guard in guard_stop.
_CRASHED = (NonFiniteError.exit_code, GuardError.exit_code)

Say = Callable[[str], None]


@dataclass(frozen=True)
class GridRun:
    """One run: what the grid varies, the name of its folder, and its options of `vopd train`, without defaults."""

    estimator: Estimator
    seed: int
    learning_rate: float
    directory: str
    options: Mapping[str, Any]


def run_name(estimator: Estimator, learning_rate: float, seed: int) -> str:
    """The name of a run's folder, from all that the grid varies."""
    return f"{estimator.name}-lr{learning_rate:g}-seed{seed}"


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
    """Run everything that is not finished, `processes` runs at a time, each in a process with one thread.

    A run whose training crashed is recorded as failed, and the others continue.

    Args:
        runs: all runs of the grid.
        folder: of the grid; the file of held-out problems already exists where `measurement` says.
        offline: no requests to the Hugging Face Hub; the models are local then.
        entry: module to run as `python -m ENTRY --folder FOLDER --run NAME`; the start is a run named "start".

    Raises:
        ConfigurationError: the folder has runs with other settings or measurements.
        VOPDError: a run failed for any other reason; the message has the last line of its log.
    """
    prepare(runs, folder, measurement)
    waiting = [name for name in (START, *(run.directory for run in runs)) if not is_finished(folder / name)]
    for name in waiting:  # delete what a killed run left, unless it can resume from it
        if (folder / name).is_dir() and not may_resume(folder / name):
            shutil.rmtree(folder / name)
    jobs = [
        Job(name, [entry, "--folder", str(folder), "--run", name], folder / "logs" / f"{name}.log", offline)
        for name in waiting
    ]
    progress = _Progress(folder, runs, say)
    say(f"{counted(len(runs), 'run')}, {progress.done} already finished")
    run_jobs(jobs, processes, finished=progress.finished, tick=progress.tick, excused=progress.excused)


def prepare(runs: Sequence[GridRun], folder: Path, measurement: Measurement) -> None:
    """Write the measurement and every run's configuration.

    Raises:
        ConfigurationError: the folder has runs that were measured differently, or trained with other options, data or
            models; or an estimator cannot be imported by the process of its run. What a comparison left that failed
            before its first run was measured or has logged a step is replaced.
    """
    yaml = require("yaml", "train")
    for run in runs:
        if run.directory in _RESERVED:
            raise ConfigurationError(
                f"the folder {run.directory!r} is reserved in a comparison: give the estimator another name"
            )
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    config_of(folder, START).parent.mkdir(exist_ok=True)
    path = folder / MEASUREMENT_FILE
    begun = any(path.stat().st_size for name in (MEASURED_FILE, METRICS_FILE) for path in folder.glob(f"*/{name}"))
    keep = _keep if begun else _write
    # Not compared as text: an older folder lacks fields that were added since, and means their defaults.
    known = path.is_file() and read_measurement(folder) == measurement
    keep(path, path.read_text(encoding="utf-8") if known else json.dumps(asdict(measurement), indent=1) + "\n")
    contents = _Contents(measurement.held_out)
    wanted: dict[Path, tuple[dict[str, Any], dict[str, Any]]] = {}
    for run in runs:
        path, options = config_of(folder, run.directory), options_of(run, folder)
        if wanted.get(path, (options,))[0] != options:
            raise ConfigurationError(
                f"two runs would share the folder {run.directory!r}; make their settings differ more"
            )
        wanted[path] = options, contents.of(run)
        if begun:
            _check_same(path, *wanted[path])
    for path, (options, named) in wanted.items():
        path.write_text(yaml.safe_dump(options), encoding="utf-8")
        write_whole(path.with_suffix(_CONTENTS), json.dumps(named, indent=1) + "\n")


def options_of(run: GridRun, folder: Path) -> dict[str, Any]:
    """The options of `vopd train` for a run in the folder of its grid."""
    return {
        **run.options, "estimator": spelled(run.estimator), "seed": run.seed, "learning_rate": run.learning_rate,
        "output_dir": str(folder), "run_name": run.directory,
    }  # fmt: skip


class _Contents:
    """What the options of runs name: data, models, and the code of estimators."""

    def __init__(self, held_out: str) -> None:
        from vopd.training.saving import contents, contract  # which need the extra `train`

        self.model, self.file, self.estimator = (
            cache(contents.contents_of_model), cache(contents.contents_of_file), contract.contents_of_estimator,
        )  # fmt: skip
        self.held_out = held_out

    def of(self, run: GridRun) -> dict[str, Any]:
        options = run.options
        models = {"model": options.get("model"), "teacher_model": options.get("teacher_model")}
        models |= {f"teacher {name}": source for name, source in (options.get("teachers") or {}).items()}
        data = [str(one["source"] if isinstance(one, dict) else one) for one in _listed(options.get("dataset"))]
        return {
            **{name: self.model(str(source)) for name, source in models.items() if source is not None},
            "dataset": [self.file(one) for one in data],
            "held_out": self.file(self.held_out),
            "estimator": self.estimator(run.estimator, spelled(run.estimator)),
        }


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _check_same(path: Path, options: dict[str, Any], contents: dict[str, Any]) -> None:
    """Check that the run that `path` configures, if there is one, was trained with these options and contents.

    What a resumed run may change must be the same too, because the runs are compared with each other.

    Raises:
        ConfigurationError: it was trained with others.
    """
    from vopd.training.saving.contract import FREE, RULES, differences, refuse

    if not path.is_file():
        return
    saved = require("yaml", "train").safe_load(path.read_text(encoding="utf-8"))
    named = read_json(path.with_suffix(_CONTENTS))  # an older folder has none
    if named:
        saved, options = ({**old, **its} for old, its in ((saved, named), (options, contents)))
    names = [name for name in {**saved, **options} if RULES.get(name) != FREE]
    before, now = ({name: found.get(name) for name in names} for found in (saved, options))
    refuse(differences(before, now), f"'{path.parents[1]}' has a comparison with other settings")


def read_measurement(folder: Path) -> Measurement:
    """The measurement of a grid, from its folder; an older one may have fields that there are no longer."""
    known, found = {field.name for field in fields(Measurement)}, read_json(folder / MEASUREMENT_FILE)
    return Measurement(**{name: value for name, value in found.items() if name in known})


def config_of(folder: Path, name: str) -> Path:
    """The file with the options of a run."""
    return folder / "configs" / f"{name}.yaml"


def _keep(path: Path, text: str) -> None:
    """Write a file once: an existing one must be the same, or finished runs would mean something else."""
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise ConfigurationError(f"{path} was written with other settings; choose a new run_name for a new comparison")
    _write(path, text)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def is_finished(folder: Path) -> bool:
    """Whether a run (or the start) was measured to its end."""
    return (folder / MEASURED_FILE).is_file()


def may_resume(folder: Path) -> bool:
    """Whether a killed run can resume: its newest valid checkpoint has more than the model."""
    from vopd.training.saving.checkpoints import newest_valid  # which needs the extra `train`
    from vopd.training.saving.resume import lost_states

    found = newest_valid(folder).path if folder.is_dir() else None
    return found is not None and not lost_states(found)


class _Progress:
    """Reports how far the runs are and the remaining time, and records a run that crashed as failed."""

    def __init__(self, folder: Path, runs: Sequence[GridRun], say: Say) -> None:
        self.folder, self.say = folder, say
        self.steps = {run.directory: run.options.get("max_steps") for run in runs}
        self.done = self.before = sum(is_finished(folder / name) for name in self.steps)
        self.started = self.last = time.monotonic()

    def finished(self, job: Job, seconds: float) -> None:
        self.done += job.name != START
        left = ""
        if new := self.done - self.before:
            minutes = (time.monotonic() - self.started) / new * (len(self.steps) - self.done) / 60
            left = f", about {minutes:.0f} min left"
        if job.name == START:
            self.say(f"  {START}: measured")
            return
        spent = processor_seconds(read_records(self.folder / job.name / METRICS_FILE))
        took = "" if spent is None else f", {spent:.0f} processor seconds of training"
        self.say(f"  {job.name}: done{took}; {self.done} of {len(self.steps)}{left}")

    def tick(self, jobs: Sequence[Job]) -> None:
        if jobs and time.monotonic() - self.last > _PROGRESS_SECONDS:
            self.last = time.monotonic()
            self.say("  " + "   ".join(f"{job.name}: {self._state(job.name)}" for job in jobs))

    def excused(self, job: Job, code: int) -> bool:
        if code not in _CRASHED:
            return False
        write_measured(self.folder / job.name, {"failed": last_line(job.log) or "crashed"})
        self.say(f"  {job.name}: crashed")
        return True

    def _state(self, name: str) -> str:
        folder = self.folder / name
        if name == START or (folder / "model").is_dir():
            return "measuring"
        records = read_records(folder / METRICS_FILE)
        if not records:
            return "loading"
        return f"step {records[-1]['step']}" + (f" of {self.steps[name]}" if self.steps[name] else "")


def write_measured(folder: Path, measured: dict[str, Any]) -> None:
    """Write measured.json atomically: a run with that file is finished."""
    folder.mkdir(exist_ok=True)
    write_whole(folder / MEASURED_FILE, json.dumps(measured) + "\n")


def measured_of(folder: Path) -> dict[str, Any]:
    """The measurements of a run or of the start."""
    return read_json(folder / MEASURED_FILE)


def collect(runs: Sequence[GridRun], folder: Path, settings: dict[str, Any]) -> Comparison:
    """The comparison of all finished runs, named by estimator, and by learning rate if there are several.

    A failed run counts as wrong on every problem and as diverged: its reverse KL is infinite and it has no curve.

    Raises:
        DataError: the start was not measured, or no run is finished.
    """
    if not is_finished(folder / START):
        raise DataError(f"{folder} is not a comparison, or its start was not measured yet")
    raw = measured_of(folder / START)
    start = Start(
        raw["student_outcomes"], raw["teacher_outcomes"], Interval(**raw["reverse_kl"]), raw["gradient_noise"]
    )
    several = len({run.learning_rate for run in runs}) > 1
    first = _curve_point(raw, start, read_measurement(folder))
    found = [_run(run, folder, start, first, several) for run in runs if is_finished(folder / run.directory)]
    if not found:
        raise DataError(f"{folder} has no finished run")
    own = {run.estimator.name: run.estimator.colour for run in runs if run.estimator.name not in ESTIMATORS}
    return Comparison(settings, start, found, own)


def _curve_point(raw: dict[str, Any], start: Start, plan: Measurement) -> list[float] | None:
    """Reverse KL and accuracy with which all curves begin, on the problems of their other points.

    None in a folder of before they were measured, unless those are all problems.
    """
    if "curve_point" in raw:
        return list(raw["curve_point"])
    whole = plan.curve_problems >= len(start.student_outcomes)
    return [start.reverse_kl.value, start.student_score.value] if whole else None


def _run(run: GridRun, folder: Path, start: Start, first: Sequence[float] | None, several: bool) -> Run:
    measured, seconds = measured_of(folder / run.directory), training_seconds(folder / run.directory)
    processor = processor_seconds(read_records(folder / run.directory / METRICS_FILE))
    name = f"{run.estimator.name} {run.learning_rate:g}" if several else run.estimator.name
    if "failed" in measured:
        nothing = Interval(float("inf"), float("inf"), float("inf"))
        wrong = [False] * len(start.student_outcomes)
        return Run(name, run.seed, run.directory, wrong, nothing, [], seconds, processor_seconds=processor)
    accuracy, curve = (list(map(tuple, measured[name])) for name in ("accuracy_curve", "curve"))
    if first is not None:
        curve.insert(0, (0, first[0]))
        accuracy = [(0, first[1]), *accuracy] if accuracy else []
    divergence = Interval(**measured["reverse_kl"])
    right = measured["outcomes"]
    return Run(name, run.seed, run.directory, right, divergence, curve, seconds, accuracy, processor)


def training_seconds(folder: Path) -> float:
    """Wall seconds of all optimizer steps, rollouts included, without loading and saving."""
    return sum(timing_split(read_records(folder / METRICS_FILE)).values())

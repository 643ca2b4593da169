"""`vopd demo`: the embedded pair distilled with several estimators, and what comes of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vopd.errors import ConfigurationError, check_at_least, require
from vopd.reporting.comparison import COMPARISON_FILE, Comparison, Interval, Run, Start, write_comparison
from vopd.reporting.comparison_report import draw_comparison
from vopd.reporting.report import write_report
from vopd.reporting.run_files import METRICS_FILE, read_metrics
from vopd.reporting.tables import comparison_text

from .jobs import Job, run_jobs
from .measure_job import HELD_OUT_SEED, MEASURED_FILE, SHOWN_SAMPLES
from .pair import MAX_COMPLETION_TOKENS, embedded_pair, pair_problems, prompt_text

DEMO_ESTIMATORS = ("opd", "vopd", "vopd_optimal", "rao_blackwell_teacher_top_k", "full_rkl")
# k of the estimators that have one.
_TOP_K = 20
_BATCH = 16
# Small enough for vanilla OPD to improve too: larger steps favour the estimators of low noise.
_LEARNING_RATE = 3e-4
_WARMUP_STEPS = 20
_CHECKPOINTS = 5
_PROGRESS_SECONDS = 10.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Plan:
    """What a demo does, and where it puts it."""

    folder: Path
    estimators: Sequence[str]
    seeds: int
    steps: int
    problems: int

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "student": "embedded student",
            "teacher": "embedded teacher",
            "steps": self.steps,
            "batch": _BATCH,
            "learning_rate": _LEARNING_RATE,
            "top_k": _TOP_K,
            "seeds": self.seeds,
            "held_out_problems": self.problems,
        }

    def runs(self) -> list[tuple[str, int, str]]:
        """(estimator, seed, directory) of every run."""
        return [
            (name, seed, name if self.seeds == 1 else f"{name}-seed{seed}")
            for seed in range(self.seeds)
            for name in self.estimators
        ]


def run_demo(
    output_dir: str | Path,
    estimators: Sequence[str] = DEMO_ESTIMATORS,
    seeds: int = 1,
    processes: int = 2,
    steps: int = 300,
    problems: int = 600,
    say: Say = print,
) -> Comparison:
    """Distil the embedded student with each estimator from the same start and prompts, and compare.

    Every run is an ordinary `vopd train` in a process of its own; run directories, comparison.json, comparison.txt,
    comparison.png, samples.md and report.html go to `output_dir`. Downloads nothing.

    Args:
        output_dir: made if it is absent.
        estimators: names of ``vopd.ESTIMATORS``.
        seeds: runs of each estimator; seed s has its own training problems, shared by all estimators.
        processes: runs at a time, of one thread each.
        steps: optimizer steps of a run, 16 prompts each.
        problems: held-out problems for accuracy and reverse KL.
        say: takes the lines of progress and the result.

    Raises:
        ConfigurationError: an unknown estimator or a number out of range.
        VOPDError: a run failed; with the last line of its log.
    """
    plan = _Plan(Path(output_dir).resolve(), tuple(dict.fromkeys(estimators)), seeds, steps, problems)
    _check(plan, processes)
    # What is drawn at the end is asked for now, not after minutes of training.
    require("matplotlib", "report")
    started = time.monotonic()
    say(_announcement(plan))
    _write_data(plan)
    run_jobs(_jobs(plan), processes, finished=_finished(say), tick=_Progress(plan, say))
    comparison = _collect(plan)
    _write_results(comparison, plan)
    say("\n" + comparison_text(comparison))
    say(f"\n{time.monotonic() - started:.0f} s in all; report.html, samples and runs are in {output_dir}")
    return comparison


def _check(plan: _Plan, processes: int) -> None:
    from vopd.estimators import ESTIMATORS

    for name in plan.estimators:
        if name not in ESTIMATORS:
            raise ConfigurationError(f"unknown estimator '{name}'; choose among {', '.join(ESTIMATORS)}")
    if not plan.estimators:
        raise ConfigurationError("the demo needs at least one estimator")
    for label, value, least in (
        ("seeds", plan.seeds, 1),
        ("processes", processes, 1),
        ("steps", plan.steps, _CHECKPOINTS),
        ("problems", plan.problems, SHOWN_SAMPLES),
    ):
        check_at_least(label, value, least)


def _announcement(plan: _Plan) -> str:
    runs = len(plan.runs())
    return (
        f"{runs} runs of {plan.steps} steps from one student, with {', '.join(plan.estimators)}; "
        f"all on the CPU, no download"
    )


def _write_data(plan: _Plan) -> None:
    plan.folder.mkdir(parents=True, exist_ok=True)
    for seed in range(plan.seeds):
        _write_problems(plan.folder / f"train-seed{seed}.jsonl", "train", plan.steps * _BATCH, seed)
    _write_problems(plan.folder / "held_out.jsonl", "held_out", plan.problems, HELD_OUT_SEED)
    (plan.folder / "start").mkdir(exist_ok=True)


def _write_problems(path: Path, split: Any, count: int, seed: int) -> None:
    rows = [
        {"prompt": prompt_text(problem), "answer": problem.answer, "task": problem.task}
        for problem in pair_problems(split, count, seed)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _jobs(plan: _Plan) -> list[Job]:
    measure = "vopd.experiments.measure_job"
    count = ["--problems", str(plan.problems)]
    start = plan.folder / "start"
    top_k = json.dumps({name: _TOP_K for name in plan.estimators if _needs_top_k(name)})
    jobs = [
        Job(
            "start",
            [[measure, "start", str(start), *count, "--estimators", *plan.estimators, "--top-k", top_k]],
            start / "log.txt",
        )
    ]
    for name, seed, directory in plan.runs():
        folder = plan.folder / directory
        commands = [_train_command(plan, name, seed, directory), [measure, "run", str(folder), *count]]
        jobs.append(Job(directory, commands, plan.folder / f"{directory}.log"))
    return jobs


def _train_command(plan: _Plan, estimator: str, seed: int, directory: str) -> list[str]:
    paths = embedded_pair()
    options: dict[str, Any] = {
        "model": paths.student,
        "teacher_model": paths.teacher,
        "dataset": plan.folder / f"train-seed{seed}.jsonl",
        "output_dir": plan.folder,
        "run_name": directory,
        "estimator": estimator,
        "max_steps": plan.steps,
        "per_device_train_batch_size": _BATCH,
        "gradient_accumulation_steps": 1,
        "max_completion_length": MAX_COMPLETION_TOKENS,
        "learning_rate": _LEARNING_RATE,
        "lr_scheduler_type": "linear",
        "warmup_steps": min(_WARMUP_STEPS, plan.steps // 5),
        "save_steps": plan.steps // _CHECKPOINTS,
        "save_only_model": "true",
        "metrics_every": 10,
        "use_cpu": "true",
        "seed": seed,
    }
    if _needs_top_k(estimator):
        options["loss_top_k"] = _TOP_K
    return ["vopd", "train", *(text for name, value in options.items() for text in (f"--{name}", str(value)))]


def _needs_top_k(estimator: str) -> bool:
    from vopd.estimators import ESTIMATORS

    return ESTIMATORS[estimator].needs_top_k


def _finished(say: Say) -> Callable[[Job, float], None]:
    def report(job: Job, seconds: float) -> None:
        say(f"  {job.name}: done in {seconds:.0f} s")

    return report


class _Progress:
    """Says now and then how far the running jobs are."""

    def __init__(self, plan: _Plan, say: Say) -> None:
        self.plan = plan
        self.say = say
        self.last = time.monotonic()

    def __call__(self, jobs: Sequence[Job]) -> None:
        if not jobs or time.monotonic() - self.last < _PROGRESS_SECONDS:
            return
        self.last = time.monotonic()
        self.say("  " + "   ".join(f"{job.name}: {self._state(job)}" for job in jobs))

    def _state(self, job: Job) -> str:
        folder = self.plan.folder / job.name
        if job.name == "start" or (folder / "model").is_dir():
            return "measuring"
        if not (folder / METRICS_FILE).exists():
            return "loading"
        records = read_metrics(folder)
        return f"step {records[-1]['step']} of {self.plan.steps}" if records else "loading"


def _collect(plan: _Plan) -> Comparison:
    raw = _measured(plan.folder / "start")
    first = Interval(**raw["reverse_kl"])
    start = Start(raw["student_outcomes"], raw["teacher_outcomes"], first, raw["gradient_noise"])
    runs = []
    for name, seed, directory in plan.runs():
        measured = _measured(plan.folder / directory)
        curve = [(0, first.value), *((step, value) for step, value in measured["curve"])]
        seconds = _training_seconds(plan.folder / directory)
        outcome = Interval(**measured["reverse_kl"])
        runs.append(Run(name, seed, directory, measured["outcomes"], outcome, curve, seconds))
    return Comparison(plan.settings, start, runs)


def _measured(folder: Path) -> dict[str, Any]:
    measured: dict[str, Any] = json.loads((folder / MEASURED_FILE).read_text())
    return measured


def _training_seconds(folder: Path) -> float:
    """Seconds of all optimizer steps, rollouts included, without loading and saving."""
    parts = ("seconds/rollout", "seconds/scoring", "seconds/update")
    return sum(record.get(part, 0.0) for record in read_metrics(folder) for part in parts)


def _write_results(comparison: Comparison, plan: _Plan) -> None:
    write_comparison(comparison, plan.folder / COMPARISON_FILE)
    (plan.folder / "comparison.txt").write_text(comparison_text(comparison) + "\n")
    (plan.folder / "samples.md").write_text(_samples_text(plan))
    draw_comparison(comparison, plan.folder, plan.folder / "comparison.png")
    write_report(plan.folder)


def _samples_text(plan: _Plan) -> str:
    """Greedy completions of a few held-out problems by all models, as Markdown."""
    texts = dict(_measured(plan.folder / "start")["samples"])
    for name, seed, directory in plan.runs():
        if seed == 0:
            texts[name] = _measured(plan.folder / directory)["samples"]
    parts = ["# Greedy completions of held-out problems\n"]
    for index, problem in enumerate(pair_problems("held_out", SHOWN_SAMPLES, HELD_OUT_SEED)):
        parts.append(f"\n## {problem.question.strip()}\n\nRight answer: {problem.answer}\n")
        parts += [f"\n- {name}: `{samples[index]}`" for name, samples in texts.items()]
        parts.append("\n")
    return "".join(parts)

"""The report of one training run: what its own files say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vopd.errors import DataError
from vopd.statistics import Difference, Score

from .benchmark_curves import training_accuracy
from .colours import BLUE, GREEN, GREY, ORANGE
from .drawing import figures_html
from .figures import Curves, Figure, Line, Row, Rows
from .page import folded, page, section, table, tiles
from .run_files import SAMPLES_FILE, read_json, read_metrics, read_records, read_text, series
from .samples_page import KEY, chosen, samples_html
from .variance_report import RESULTS_FILE, variance_beside

TIMING = {"rollout": BLUE, "scoring": GREEN, "update": ORANGE}

# Value and origin by name, as written.
Settings = dict[str, tuple[str, str]]
# Name, title, unit, note, the metrics by their labels; a figure without any of its metrics is left out.
_Spec = tuple[str, str, str, str, dict[str, str]]
_PROGRESS: tuple[_Spec, ...] = (
    ("reverse_kl", "Distance from the teacher", "reverse KL, nats a token", "On the training prompts of each step.",
     {"sampled": "sampled_reverse_kl", "exact": "reverse_kl", "evaluation": "eval_reverse_kl"}),
    ("entropy", "Entropy of the student", "nats a token", "", {"entropy": "entropy"}),
    ("grad_norm", "Norm of the gradient", "before clipping", "", {"gradient norm": "grad_norm"}),
    ("spread", "Spread of rewards and advantages", "standard deviation over tokens, nats", "",
     {"reward": "reward/std", "advantage": "advantage/std"}),
    ("completion_length", "Length of the completions", "tokens", "", {"mean length": "completion_length"}),
    ("truncated_share", "Completions cut at the length limit", "share", "", {"cut off": "truncated_share"}),
    ("loss", "Loss", "estimator's own scale", "", {"loss": "loss", "evaluation": "eval_loss"}),
    ("learning_rate", "Learning rate", "", "", {"learning rate": "learning_rate"}),
    ("rollout", "Rollout engine against trainer", "difference of log-probabilities, nats a token", "",
     {"mean": "rollout/logprob_difference_mean", "largest": "rollout/logprob_difference_max"}),
)  # fmt: skip
_VARIANCE: tuple[_Spec, ...] = (
    ("variance", "Variance of the token gradient", "closed form in the logits, mean over tokens",
     "At the run's own student, whatever estimator it trains with.",
     {"no baseline": "variance/none", "value": "variance/value", "optimal": "variance/optimal"}),
    ("value_hurts_share", "Where the value baseline hurts", "share of tokens with more variance than without", "",
     {"share": "value_hurts_share"}),
)  # fmt: skip
_SPEED: _Spec = ("tokens_per_second", "Speed", "completion tokens a second", "", {"tokens/s": "tokens_per_second"})
# What a figure is about is blue; what it is compared with is not.
_LINE_COLOURS = {
    "sampled": GREY, "reward": GREY, "no baseline": GREY, "evaluation": ORANGE, "largest": ORANGE, "optimal": ORANGE,
}  # fmt: skip


def run_report(folder: Path) -> tuple[str, list[Figure]]:
    """The page of the run in `folder`, and its figures.

    Raises:
        DataError: no metrics.jsonl, one without records, or a file of the run that cannot be read.
    """
    records = read_metrics(folder)
    if not any(isinstance(record.get("step"), int) for record in records):
        raise DataError(f"{folder}/metrics.jsonl has no step yet; wait for the first logged step")
    settings = _settings(folder / "resolved_config.yaml")
    progress, variance = _metric_figures(_PROGRESS, records), _metric_figures(_VARIANCE, records)
    timing = _timing_figures(records)
    evaluation = read_json(folder / RESULTS_FILE)
    beside, more = variance_beside(folder)
    accuracy = training_accuracy(records)
    try:
        measured = _evaluation_table(evaluation) if evaluation or not accuracy else ""
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / RESULTS_FILE} is not a results.json that vopd wrote: {error}") from error
    note = "95 % intervals: problems drawn anew." if evaluation or accuracy else ""
    parts = [
        tiles(_facts(records, settings, evaluation)),
        section("evaluation", "Evaluation", measured + figures_html(accuracy), note),
        section("progress", "Training", figures_html(progress), "Point at a curve, or tap it, to read its values."),
        section(
            "variance", "Gradient variance", figures_html(variance, "the run logged no variance; set metrics_every")
        ),
        beside,
        section("time", "Time", figures_html(timing, "the run logged no times")),
        section("samples", "Samples", _samples(folder / SAMPLES_FILE)),
        section("settings", "Settings", _settings_html(settings)),
    ]
    student = settings.get("model", ("the model", ""))[0]
    teacher = _given(settings, "teacher_model") or _given(settings, "teacher_server_url") or "the teacher_model"
    subtitle = f"{student} taught by {teacher}"
    return page(folder.resolve().name, subtitle, parts), [*accuracy, *progress, *variance, *more, *timing]


def _given(settings: Settings, name: str) -> str:
    value = settings.get(name, ("", ""))[0]
    return "" if value in ("null", "None") else value


def timing_split(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds of rollout, scoring and update, each summed over the run; parts that were not logged are absent."""
    parts = {name: series(records, f"seconds/{name}")[1] for name in TIMING}
    return {name: sum(values) for name, values in parts.items() if values}


def timing_row(label: str, split: Mapping[str, float]) -> Row:
    """One stacked bar of a run's seconds."""
    parts = [(name, seconds, TIMING[name]) for name, seconds in split.items()]
    return Row(label, _seconds(sum(split.values())), parts)


def _settings(path: Path) -> Settings:
    """Value and origin of every setting in a resolved_config.yaml, as written; empty where there is no such file.

    Raises:
        DataError: the file is not text of the form "name: value  # origin".
    """
    if not path.is_file():
        return {}
    settings = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, rest = line.partition(":")
        if not colon:
            raise DataError(f"{path} line {number} is not 'name: value'; it is not a file that vopd wrote")
        value, _, origin = rest.rpartition("  # ")
        settings[name.strip()] = (value.strip(), origin.strip()) if value else (rest.strip(), "")
    return settings


def _settings_html(settings: Settings) -> str:
    """What was chosen, in a table; everything else folded away."""
    if not settings:
        return '<p class="note">No resolved_config.yaml.</p>'
    given = {name: entry for name, entry in settings.items() if entry[1] != "default"}
    rest = [[name, value] for name, (value, origin) in settings.items() if origin == "default"]
    shown = table(["setting", "value", "from"], [[name, *entry] for name, entry in given.items()])
    more = folded(f"{len(rest)} settings at their defaults", table(["setting", "value"], rest)) if rest else ""
    return f'<div class="settings">{shown}{more}</div>'


def _evaluation_table(evaluation: Mapping[str, Any]) -> str:
    """Scores of the start model and of the trained one, and their paired difference where there is one."""
    if not evaluation:
        return '<p class="note">The run measured no accuracy; --eval_benchmarks, --eval_task or --eval_data does.</p>'
    rows = []
    for name in ("start", "trained"):
        if found := evaluation.get(name):
            rates = [f"{found[rate]:.1%}" for rate in ("format_rate", "truncation_rate")]
            accuracy, length = str(Score(**found["avg_at_k"])), f"{found['mean_length']:.0f}"
            rows.append([name, accuracy, str(found["problems"]), *rates, length])
    if "difference" in evaluation:
        rows.append(["trained - start", str(Difference(**evaluation["difference"])), "", "", "", ""])
    return table(["model", "accuracy [95 %]", "problems", "in the form asked for", "cut off", "mean length"], rows)


def _metric_figures(specs: Sequence[_Spec], records: Sequence[dict[str, Any]]) -> list[Figure]:
    figures: list[Figure] = []
    for name, title, unit, note, metrics in specs:
        lines = []
        for label, metric in metrics.items():
            steps, values = series(records, metric)
            width = len(steps) // 20 if len(steps) >= 60 else 1
            if steps:
                lines.append(Line(label, steps, values, _LINE_COLOURS.get(label, BLUE), width))
        if lines:
            figures.append(Curves(name, title, unit, lines, note))
    return figures


def _timing_figures(records: Sequence[dict[str, Any]]) -> list[Figure]:
    figures: list[Figure] = []
    if split := timing_split(records):
        total = sum(split.values()) or 1.0
        rows = [
            Row(name, f"{_seconds(seconds)} · {seconds / total:.0%}", [(name, seconds, TIMING[name])])
            for name, seconds in split.items()
        ]
        note = f"{_seconds(total)} in all; the first step warms up and loading and saving are not counted."
        figures.append(Rows("timing", "Where the time goes", "seconds, all steps", rows, note))
    return figures + _metric_figures([_SPEED], records)


def _facts(
    records: Sequence[dict[str, Any]], settings: Settings, evaluation: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    last = max(record["step"] for record in records if isinstance(record.get("step"), int))
    planned = _given(settings, "max_steps")
    of_steps = f"of {planned}" if planned.isdigit() and int(planned) != last else ""
    facts = [("estimator", _given(settings, "estimator") or "-", ""), ("steps", str(last), of_steps)]
    name = "reverse_kl" if series(records, "reverse_kl")[0] else "sampled_reverse_kl"
    if values := series(records, name)[1]:
        part = max(1, len(values) // 5)
        first, end = sum(values[:part]) / part, sum(values[-part:]) / part
        kind = "exact" if name == "reverse_kl" else "sampled"
        facts.append(("reverse KL", f"{end:.3f}", f"{kind}, last fifth of the steps; {first:.3f} in the first"))
    if "trained" in evaluation:
        score = Score(**evaluation["trained"]["avg_at_k"])
        facts.append(("accuracy", f"{score.value:.1%}", f"95 %: {score.low:.1%} to {score.high:.1%}"))
    if split := timing_split(records):
        facts.append(("time", _seconds(sum(split.values())), "in optimizer steps"))
    return facts


def _samples(path: Path) -> str:
    records = read_records(path)
    if not records:
        return '<p class="note">The run kept no samples; samples_per_step sets how many it keeps.</p>'
    return KEY + samples_html(chosen(records), str(path))


def _seconds(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

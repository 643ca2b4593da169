"""The report of one training run: what its own files say."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vopd.errors import DataError
from vopd.statistics import Difference, Score

from .drawing import figures_html
from .figures import Bar, Bars, Curves, Figure, Line
from .page import folded, page, section, table, tiles
from .run_files import read_metrics, series
from .samples_page import KEY, chosen, samples_html
from .variance_report import variance_beside

SAMPLES_FILE = "samples.jsonl"
CONFIG_FILE = "resolved_config.yaml"
RESULTS_FILE = "results.json"

_BLUE, _ORANGE, _GREEN, _GREY = "#0072b2", "#d55e00", "#009e73", "#4d4d4d"
TIMING = (("rollout", _BLUE), ("scoring", _GREEN), ("update", _ORANGE))

# Name, title, unit, the metrics with their labels and colours, note; a figure without any of its metrics is left out.
_Spec = tuple[str, str, str, tuple[tuple[str, str, str], ...], str]
_PROGRESS: tuple[_Spec, ...] = (
    (
        "reverse_kl", "Distance from the teacher", "reverse KL, nats a token",
        (("sampled_reverse_kl", "sampled", _GREY), ("reverse_kl", "exact", _BLUE),
         ("eval_reverse_kl", "evaluation", _ORANGE)),
        "On the training prompts of each step.",
    ),
    ("entropy", "Entropy of the student", "nats a token", (("entropy", "entropy", _BLUE),), ""),
    ("grad_norm", "Norm of the gradient", "before clipping", (("grad_norm", "gradient norm", _BLUE),), ""),
    (
        "spread", "Spread of rewards and advantages", "standard deviation over tokens, nats",
        (("reward/std", "reward", _GREY), ("advantage/std", "advantage", _BLUE)), "",
    ),
    (
        "completion_length", "Length of the completions", "tokens",
        (("completion_length", "mean length", _BLUE),), "",
    ),
    (
        "truncated_share", "Completions cut at the length limit", "share",
        (("truncated_share", "cut off", _BLUE),), "",
    ),
    ("loss", "Loss", "estimator's own scale", (("loss", "loss", _BLUE), ("eval_loss", "evaluation", _ORANGE)), ""),
    ("learning_rate", "Learning rate", "", (("learning_rate", "learning rate", _BLUE),), ""),
    (
        "rollout", "Rollout engine against trainer", "difference of log-probabilities, nats a token",
        (("rollout/logprob_difference_mean", "mean", _BLUE), ("rollout/logprob_difference_max", "largest", _ORANGE)),
        "",
    ),
)  # fmt: skip
_VARIANCE: tuple[_Spec, ...] = (
    (
        "variance", "Variance of the token gradient", "closed form in the logits, mean over tokens",
        (("variance/none", "no baseline", _GREY), ("variance/value", "value", _BLUE),
         ("variance/optimal", "optimal", _ORANGE)),
        "At the run's own student, whatever estimator it trains with.",
    ),
    (
        "value_hurts_share", "Where the value baseline hurts", "share of tokens with more variance than without",
        (("value_hurts_share", "share", _BLUE),), "",
    ),
)  # fmt: skip


def run_report(folder: Path) -> tuple[str, list[Figure]]:
    """The page of the run in `folder`, and its figures.

    Raises:
        DataError: no metrics.jsonl, one without records, or a file of the run that cannot be read.
    """
    records = read_metrics(folder)
    if not any(isinstance(record.get("step"), int) for record in records):
        raise DataError(f"{folder}/metrics.jsonl has no step yet; wait for the first logged step")
    settings = read_settings(folder / CONFIG_FILE)
    progress = [figure for spec in _PROGRESS if (figure := _curves(spec, records))]
    variance = [figure for spec in _VARIANCE if (figure := _curves(spec, records))]
    timing = _timing_figures(records)
    evaluation = _evaluation(folder / RESULTS_FILE)
    beside, more = variance_beside(folder)
    accuracy = accuracy_figures(records)
    measured = evaluation_table(evaluation) if evaluation or not accuracy else ""
    note = _EVALUATION_NOTE if evaluation or accuracy else ""
    parts = [
        tiles(_facts(records, settings, evaluation)),
        section("evaluation", "Evaluation", measured + (figures_html(accuracy) if accuracy else ""), note),
        section("progress", "Training", figures_html(progress), "Point at a curve, or tap it, to read its values."),
        section("variance", "Gradient variance", _or_absent(variance, "the run logged no variance; set metrics_every")),
        *beside,
        section("time", "Time", _or_absent(timing, "the run logged no times")),
        section("samples", "Samples", _samples(folder / SAMPLES_FILE)),
        section("settings", "Settings", settings_html(settings)),
    ]
    student = settings.get("model", ("the model", ""))[0]
    teacher = _given(settings, "teacher_model") or _given(settings, "teacher_server_url") or "the teacher_model"
    subtitle = f"{student} taught by {teacher}"
    return page(folder.resolve().name, subtitle, parts), [*accuracy, *progress, *variance, *more, *timing]


def _given(settings: dict[str, Any], name: str) -> Any:
    value = settings.get(name, (None, ""))[0]
    return None if value in (None, "null", "None", "") else value


def timing_split(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds of rollout, scoring and update, each summed over the run; parts that were not logged are absent."""
    parts = {name: series(records, f"seconds/{name}")[1] for name, _ in TIMING}
    return {name: sum(values) for name, values in parts.items() if values}


def timing_bar(label: str, split: Mapping[str, float]) -> Bar:
    """One stacked bar of a run's seconds."""
    colours = dict(TIMING)
    return Bar(
        label, [(name, seconds, colours[name]) for name, seconds in split.items()], _seconds(sum(split.values()))
    )


def read_settings(path: Path) -> dict[str, tuple[str, str]]:
    """Value and origin of every setting in a resolved_config.yaml, as written; empty where there is no such file.

    Raises:
        DataError: the file is not text of the form "name: value  # origin".
    """
    if not path.is_file():
        return {}
    settings = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, rest = line.partition(":")
        if not colon:
            raise DataError(f"{path} line {number} is not 'name: value'; it is not a file that vopd wrote")
        value, _, origin = rest.rpartition("  # ")
        settings[name.strip()] = (value.strip(), origin.strip()) if value else (rest.strip(), "")
    return settings


def settings_html(settings: Mapping[str, tuple[str, str]]) -> str:
    """What was chosen, in a table; everything else folded away."""
    if not settings:
        return '<p class="note">No resolved_config.yaml.</p>'
    given = {name: entry for name, entry in settings.items() if entry[1] != "default"}
    rest = [[name, value] for name, (value, origin) in settings.items() if origin == "default"]
    shown = table(["setting", "value", "from"], [[name, *entry] for name, entry in given.items()])
    more = folded(f"{len(rest)} settings at their defaults", table(["setting", "value"], rest)) if rest else ""
    return f'<div class="settings">{shown}{more}</div>'


_EVALUATION_NOTE = "95 % intervals: problems drawn anew."


def evaluation_table(evaluation: Mapping[str, Mapping[str, Any]]) -> str:
    """Scores of every evaluated model, and the paired difference where there is one."""
    if not evaluation:
        return '<p class="note">The run measured no accuracy; --eval_benchmarks, --eval_task or --eval_data does.</p>'
    models = {name: found for name, found in evaluation.items() if "avg_at_k" in found}
    rows = [_score_row(name, found) for name, found in models.items()]
    if "difference" in evaluation:
        rows.append(["trained - start", str(Difference(**evaluation["difference"])), "", "", "", ""])
    return table(["model", "accuracy [95 %]", "problems", "no answer", "cut off", "mean length"], rows)


_ACCURACY = re.compile(r"eval_(.+)_avg@(\d+)")
_BENCHMARK_COLOURS = (_BLUE, _ORANGE, _GREEN, "#8c6bb1", "#cc79a7", "#b8860b", "#56b4e9", _GREY)


def accuracy_figures(records: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Accuracy on each benchmark against the step, with its intervals; nothing where none was measured."""
    names = dict.fromkeys(name for record in records for name in record if _ACCURACY.fullmatch(name))
    lines = []
    for name, colour in zip(names, itertools.cycle(_BENCHMARK_COLOURS)):
        found = {
            record["step"]: [100 * record[key] for key in (name, f"{name}_low", f"{name}_high")]
            for record in records
            if all(isinstance(record.get(key), int | float) for key in (name, f"{name}_low", f"{name}_high", "step"))
        }
        match = _ACCURACY.fullmatch(name)
        if found and match:
            values, ends = [found[step][0] for step in sorted(found)], [found[step][1:] for step in sorted(found)]
            label = f"{match[1]}, avg@{match[2]}"
            lines.append(Line(label, sorted(found), values, colour, ends=[(low, high) for low, high in ends]))
    return [Curves("accuracy", "Accuracy on benchmarks", "per cent", lines, "", from_zero=False)] if lines else []


def _score_row(name: str, found: Mapping[str, Any]) -> list[str]:
    shares = [f"{found[key]:.1%}" if key in found else "-" for key in ("no_answer", "truncated")]
    length = f"{found['mean_length']:.0f}" if "mean_length" in found else "-"
    return [name, str(Score(**found["avg_at_k"])), str(found["avg_at_k"]["count"]), *shares, length]


def _evaluation(path: Path) -> dict[str, Any]:
    """The parts of results.json that a page shows: start, trained and difference of a run, or one evaluation's scores.

    Raises:
        DataError: it is not JSON, or its scores are not in the form that vopd writes.
    """
    if not path.is_file():
        return {}
    try:
        raw = json.loads(_text(path))
        if not isinstance(raw, dict):
            raise TypeError("it holds no names")
        found = {name: raw[name] for name in ("start", "trained", "difference") if name in raw}
        if not found and "avg_at_k" in raw:
            found = {"model": raw}
        evaluation_table(found)
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a results.json that vopd wrote: {error}") from error


def _curves(spec: _Spec, records: Sequence[dict[str, Any]]) -> Curves | None:
    name, title, unit, metrics, note = spec
    lines = []
    for metric, label, colour in metrics:
        steps, values = series(records, metric)
        if steps:
            width = max(1, len(steps) // 20)
            lines.append(Line(label, steps, values, colour, width if width > 2 else 1))
    if not lines:
        return None
    widest = max(line.width for line in lines)
    smoothing = f"Mean over {widest} logged steps; every value is in the CSV." if widest > 1 else ""
    return Curves(name, title, unit, lines, " ".join(filter(None, (note, smoothing))))


def _timing_figures(records: Sequence[dict[str, Any]]) -> list[Figure]:
    figures: list[Figure] = []
    split = timing_split(records)
    if split:
        total = sum(split.values()) or 1.0
        rows = [
            Bar(name, [(name, seconds, dict(TIMING)[name])], f"{_seconds(seconds)} · {seconds / total:.0%}")
            for name, seconds in split.items()
        ]
        note = f"{_seconds(total)} in all; the first step warms up and loading and saving are not counted."
        figures.append(Bars("timing", "Where the time goes", "seconds, all steps", rows, note))
    speed = _curves(
        ("tokens_per_second", "Speed", "completion tokens a second", (("tokens_per_second", "tokens/s", _BLUE),), ""),
        records,
    )
    return [*figures, speed] if speed else figures


def _facts(
    records: Sequence[dict[str, Any]], settings: Mapping[str, tuple[str, str]], evaluation: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    last = max(record["step"] for record in records if isinstance(record.get("step"), int))
    estimator = settings.get("estimator", ("vopd", ""))[0] if settings else "-"
    facts = [("estimator", estimator, ""), ("steps", str(last), _of_steps(last, settings))]
    name = "reverse_kl" if series(records, "reverse_kl")[0] else "sampled_reverse_kl"
    values = series(records, name)[1]
    if values:
        part = max(1, len(values) // 5)
        first, end = sum(values[:part]) / part, sum(values[-part:]) / part
        kind = "exact" if name == "reverse_kl" else "sampled"
        facts.append(("reverse KL", f"{end:.3f}", f"{kind}, last fifth of the steps; {first:.3f} in the first"))
    if "trained" in evaluation:
        score = Score(**evaluation["trained"]["avg_at_k"])
        facts.append(("accuracy", f"{score.value:.1%}", f"95 %: {score.low:.1%} to {score.high:.1%}"))
    split = timing_split(records)
    if split:
        facts.append(("time", _seconds(sum(split.values())), "in optimizer steps"))
    return facts


def _of_steps(last: int, settings: Mapping[str, tuple[str, str]]) -> str:
    planned = settings.get("max_steps", ("", ""))[0]
    return f"of {planned}" if planned.isdigit() and int(planned) != last else ""


def _samples(path: Path) -> str:
    records = read_metrics(path) if path.is_file() else []
    if not records:
        return '<p class="note">The run kept no samples; samples_per_step sets how many it keeps.</p>'
    return KEY + samples_html(chosen(records), str(path))


def _or_absent(figures: Sequence[Figure], absent: str) -> str:
    return figures_html(list(figures)) if figures else f'<p class="note">Nothing to show: {absent}.</p>'


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}; give a run directory that vopd wrote") from error


def _seconds(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

"""The report of one training run, made from the files in its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from vopd.errors import DataError, require
from vopd.statistics import Difference, Score

from .benchmark_curves import training_accuracy
from .colours import BLUE, GREEN, GREY, ORANGE, SERIES
from .drawing import figures_html
from .figures import Curves, Figure, Line, Row, Rows
from .page import escape, folded, page, section, table, tiles
from .run_files import GUARDS_FILE, SAMPLES_FILE, read_json, read_metrics, read_records, read_text, series
from .samples_page import KEY, chosen, samples_html
from .variance_report import RESULTS_FILE, variance_beside

TIMING = {"rollout": BLUE, "scoring": GREEN, "reward": GREY, "update": ORANGE}

# Value and origin of each setting, as written.
Settings = dict[str, tuple[str, str]]
# Name, title, unit, note, label -> metric; a figure with none of its metrics is left out. `reward/std` is the older
# name of `teacher_reward/std`, which runs of both releases have.
_Spec = tuple[str, str, str, str, dict[str, str]]
_PROGRESS: tuple[_Spec, ...] = (
    ("reverse_kl", "Distance from the teacher", "reverse KL, nats/token", "On the training prompts of each step.",
     {"sampled": "sampled_reverse_kl", "exact": "reverse_kl", "evaluation": "eval_reverse_kl"}),
    ("entropy", "Entropy of the student", "nats/token", "", {"entropy": "entropy"}),
    ("grad_norm", "Gradient norm", "before clipping", "", {"gradient norm": "grad_norm"}),
    ("spread", "Spread of rewards and advantages", "standard deviation over tokens, nats", "",
     {"teacher's reward": "reward/std", "advantage": "advantage/std"}),
    ("completion_length", "Completion length", "tokens", "", {"mean length": "completion_length"}),
    ("truncated_share", "Completions cut off at max_completion_length", "share", "", {"cut off": "truncated_share"}),
    ("loss", "Loss", "the estimator's own scale", "", {"loss": "loss", "evaluation": "eval_loss"}),
    ("learning_rate", "Learning rate", "", "", {"learning rate": "learning_rate"}),
    ("rollout", "Rollout engine vs. trainer", "difference of log-probabilities, nats/token", "",
     {"mean": "rollout/logprob_difference_mean", "largest": "rollout/logprob_difference_max"}),
)  # fmt: skip
_VARIANCE: tuple[_Spec, ...] = (
    ("variance", "Variance of the token gradient", "closed form in the logits, mean over tokens",
     "At this run's student, whatever estimator it trains with.",
     {"no baseline": "variance/none", "value": "variance/value", "optimal": "variance/optimal"}),
    ("value_hurts_share", "Where the value baseline hurts", "share of tokens with more variance than without", "",
     {"share": "value_hurts_share"}),
)  # fmt: skip
_SPEED: _Spec = ("tokens_per_second", "Speed", "completion tokens/s", "", {"tokens/s": "tokens_per_second"})
_ZERO_SPREAD: _Spec = (
    "zero_spread_share", "Prompts whose rewards are all equal", "share, without group advantage", "",
    {"share": "zero_spread_share"},
)  # fmt: skip
_REWARDS_NOTE = "Verifiable rewards beside the teacher. Their group advantages are added to the teacher's."
# By how the source begins.
_TEACHER_KINDS = {"http": "server", "self:": "the student itself (self-distillation)"}
_LOCAL = "in the training process"
# The main line of a figure is blue; what it is compared with is not.
_LINE_COLOURS = {
    "sampled": GREY, "teacher's reward": GREY, "no baseline": GREY, "evaluation": ORANGE, "largest": ORANGE,
    "optimal": ORANGE,
}  # fmt: skip


def run_report(folder: Path, *, reload: float = 0) -> tuple[str, list[Figure]]:
    """The page of the run in `folder`, and its figures. `reload` is that of `page`.

    Raises:
        DataError: no metrics.jsonl, one without records, or a file of the run that cannot be read.
    """
    records = read_metrics(folder)
    if not any(isinstance(record.get("step"), int) for record in records):
        raise DataError(f"{folder}/metrics.jsonl has no step yet; wait for the first logged step")
    settings = _settings(folder / "resolved_config.yaml")
    progress, variance = _metric_figures(_PROGRESS, records), _metric_figures(_VARIANCE, records)
    rewards, teachers = _reward_figures(records), _teacher_figures(records)
    timing = _timing_figures(records)
    evaluation = read_json(folder / RESULTS_FILE)
    beside, more = variance_beside(folder)
    accuracy = training_accuracy(records)
    try:
        measured = _evaluation_table(evaluation) if evaluation or not accuracy else ""
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / RESULTS_FILE} is not a results.json that vopd wrote: {error}") from error
    note = "95 % intervals over problems (bootstrap)." if evaluation or accuracy else ""
    absent = "the run logged no variance; set metrics_every"
    parts = [
        tiles(_facts(records, settings, evaluation)),
        _guards(folder / GUARDS_FILE),
        section("evaluation", "Evaluation", measured + figures_html(accuracy), note),
        section("progress", "Training", figures_html(progress), "Point at a curve, or tap it, to read its values."),
        section("rewards", "Rewards", figures_html(rewards), _REWARDS_NOTE) if rewards else "",
        _teachers(settings, records, teachers),
        section("variance", "Gradient variance", figures_html(variance, absent)),
        beside,
        section("time", "Time", figures_html(timing, "the run logged no times")),
        section("samples", "Samples", _samples(folder / SAMPLES_FILE)),
        section("settings", "Settings", _settings_html(settings)),
    ]
    teachers_named = ", ".join(map(_shortened, _teacher_sources(settings).values())) or "unknown"
    subtitle = f"student {_shortened(_given(settings, 'model')) or 'unknown'}, teacher {teachers_named}"
    figures = [*accuracy, *progress, *rewards, *teachers, *variance, *more, *timing]
    return page(folder.resolve().name, subtitle, parts, reload=reload), figures


def _shortened(source: str) -> str:
    """A hub id or address as it is, of a longer path the last two parts."""
    return source if "://" in source else "/".join(source.rsplit("/", 2)[-2:])


def progress_line(folder: Path) -> str:
    """The last logged step of the run in `folder`, and its reverse KL."""
    records, settings = read_metrics(folder), _settings(folder / "resolved_config.yaml")
    of_steps, name = _planned(settings), _distance(records)
    steps, values = series(records, name)
    shown = f", reverse KL {values[-1]:.3f}" if steps else ""
    return f"step {_last_step(records)}{f' of {of_steps}' if of_steps else ''}{shown}"


def _last_step(records: Sequence[dict[str, Any]]) -> int:
    return max(record["step"] for record in records if isinstance(record.get("step"), int))


def _planned(settings: Settings) -> str:
    """The run's number of steps where max_steps sets it; else empty."""
    planned = _given(settings, "max_steps")
    return planned if planned.isdigit() else ""


def _distance(records: Sequence[dict[str, Any]]) -> str:
    """The metric of the reverse KL: the exact one where it was logged."""
    return "reverse_kl" if series(records, "reverse_kl")[0] else "sampled_reverse_kl"


def _given(settings: Settings, name: str) -> str:
    value = settings.get(name, ("", ""))[0]
    return "" if value in ("null", "None") else value


def timing_split(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Wall seconds of each phase of a step, summed over the run; phases that were not logged are absent."""
    parts = {name: _total(records, f"seconds/{name}") for name in TIMING}
    return {name: seconds for name, seconds in parts.items() if seconds is not None}


def processor_seconds(records: Sequence[dict[str, Any]]) -> float | None:
    """Processor seconds of all optimizer steps; None where they were not logged."""
    return _total(records, "seconds/processor")


def _total(records: Sequence[dict[str, Any]], name: str) -> float | None:
    """The sum over all steps of a metric that is logged as a mean over the steps since the last record."""
    steps, values = series(records, name)
    return sum(value * (step - last) for last, step, value in zip([0, *steps], steps, values)) if values else None


def timing_row(label: str, split: Mapping[str, float]) -> Row:
    """One stacked bar: a run's seconds by phase."""
    parts = [(name, seconds, TIMING[name]) for name, seconds in split.items()]
    return Row(label, _seconds(sum(split.values())), parts)


def _settings(path: Path) -> Settings:
    """Value and origin of every setting in a resolved_config.yaml, as written; empty if there is no such file.

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
    """A table of the settings that are not defaults; the defaults are folded away."""
    if not settings:
        return '<p class="note">No resolved_config.yaml.</p>'
    given = {name: entry for name, entry in settings.items() if entry[1] != "default"}
    rest = [[name, value] for name, (value, origin) in settings.items() if origin == "default"]
    shown = table(["setting", "value", "set by"], [[name, *entry] for name, entry in given.items()])
    more = folded(f"{len(rest)} settings at their defaults", table(["setting", "value"], rest)) if rest else ""
    return f'<div class="settings">{shown}{more}</div>'


def _evaluation_table(evaluation: Mapping[str, Any]) -> str:
    """Scores of the student before and after training, and their paired difference if there is one."""
    if not evaluation:
        text = "The run measured no accuracy; set --eval_benchmarks, --eval_task or --eval_data."
        return f'<p class="note">{text}</p>'
    rows = []
    for name in ("start", "trained"):
        if found := evaluation.get(name):
            rates = [f"{found[rate]:.1%}" for rate in ("format_rate", "truncation_rate")]
            accuracy, length = str(Score(**found["avg_at_k"])), f"{found['mean_length']:.0f}"
            rows.append([name, accuracy, str(found["problems"]), *rates, length])
    if "difference" in evaluation:
        rows.append(["trained - start", str(Difference(**evaluation["difference"])), "", "", "", ""])
    headers = ["model", "accuracy [95 %]", "problems", "answer in the right format", "cut off", "mean length"]
    return table(headers, rows)


def _metric_figures(specs: Sequence[_Spec], records: Sequence[dict[str, Any]]) -> list[Figure]:
    figures: list[Figure] = []
    for name, title, unit, note, metrics in specs:
        found = (_line(label, metric, records, _LINE_COLOURS.get(label, BLUE)) for label, metric in metrics.items())
        lines = [line for line in found if line.steps]
        if lines:
            figures.append(Curves(name, title, unit, lines, note))
    return figures


def _line(label: str, metric: str, records: Sequence[dict[str, Any]], colour: str) -> Line:
    """A metric over the steps, smoothed in a long run; the learning rate is a schedule and has no noise."""
    steps, values = series(records, metric)
    width = len(steps) // 20 if len(steps) >= 60 and metric != "learning_rate" else 1
    return Line(label, steps, values, colour, width)


def _timing_figures(records: Sequence[dict[str, Any]]) -> list[Figure]:
    figures: list[Figure] = []
    if split := timing_split(records):
        total = sum(split.values()) or 1.0
        rows = [
            Row(name, f"{_seconds(seconds)} · {seconds / total:.0%}", [(name, seconds, TIMING[name])])
            for name, seconds in split.items()
        ]
        note = f"{_seconds(total)} in total, the first step's warm-up included, without loading and saving."
        figures.append(Rows("timing", "Time by phase", "wall seconds, all steps", rows, note))
    return figures + _metric_figures([_SPEED], records)


def _facts(
    records: Sequence[dict[str, Any]], settings: Settings, evaluation: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    last, planned = _last_step(records), _planned(settings)
    of_steps = f"of {planned}" if planned and int(planned) != last else ""
    facts = [("estimator", _given(settings, "estimator") or "-", ""), ("steps", str(last), of_steps)]
    name = _distance(records)
    if ends := _first_and_last_fifth(records, name):
        kind = "exact" if name == "reverse_kl" else "sampled"
        detail = f"nats/token, {kind}, last fifth of the steps; first fifth: {ends[0]:.3f}"
        facts.append(("reverse KL", f"{ends[1]:.3f}", detail))
    for label, metric in _reward_means(records).items():
        first, last_fifth = _first_and_last_fifth(records, metric) or (0.0, 0.0)
        facts.append(
            (f"reward {label}", f"{last_fifth:.3g}", f"mean, last fifth of the steps; first fifth: {first:.3g}")
        )
    if "trained" in evaluation:
        score = Score(**evaluation["trained"]["avg_at_k"])
        facts.append(("accuracy", f"{score.value:.1%}", f"95 %: {score.low:.1%} to {score.high:.1%}"))
    if split := timing_split(records):
        spent = processor_seconds(records)
        beside = "" if spent is None else f"; {_seconds(spent)} of the processor"
        facts.append(("time", _seconds(sum(split.values())), f"wall time of the optimizer steps{beside}"))
    return facts


def _first_and_last_fifth(records: Sequence[dict[str, Any]], name: str) -> tuple[float, float] | None:
    """Means of a metric over the first and the last fifth of its logged steps; None where it was never logged."""
    values = series(records, name)[1]
    part = max(1, len(values) // 5)
    return (sum(values[:part]) / part, sum(values[-part:]) / part) if values else None


def _guards(path: Path) -> str:
    """The guards that fired: when, what was seen, what to try. Empty where none did."""
    shown = ""
    for record in read_records(path):
        # A guard's message is "what it saw; what to try".
        seen, _, advice = str(record.get("message", "")).partition("; ")
        title = f"step {record.get('step', '?')} · guard {record.get('guard', '?')}"
        shown += f'<article class="warning"><h3>{escape(title)}</h3><p>{escape(seen)}</p>'
        shown += f"<p>{escape(advice)}</p></article>\n"
    note = "Each guard is listed at the step where its condition began to hold."
    return section("guards", "Guards that fired", shown, note) if shown else ""


def _names_under(records: Sequence[dict[str, Any]], pattern: str) -> list[str]:
    """What stands in the place of NAME in the metrics that match, in the order of their first record."""
    metric = re.compile(pattern)
    found = (match[1] for record in records for name in record if (match := metric.fullmatch(name)))
    return list(dict.fromkeys(found))


def _reward_means(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The metric of each reward function's mean."""
    return {name: f"rewards/{name}/mean" for name in _names_under(records, "rewards/(.+)/mean")}


def _reward_figures(records: Sequence[dict[str, Any]]) -> list[Figure]:
    """The mean of each reward function; and how many prompts had no spread, and so no group advantage."""
    means = _reward_means(records)
    spec = ("rewards", "Reward by function", "mean over completions, before reward_weights", "")
    return [*_named_figures(spec, means, records), *_metric_figures([_ZERO_SPREAD], records)]


def _teacher_figures(records: Sequence[dict[str, Any]]) -> list[Figure]:
    """The reverse KL to each of several teachers, at the tokens of its own prompts."""
    kind = "reverse_kl" if _names_under(records, "reverse_kl/(.+)") else "sampled_reverse_kl"
    metrics = {name: f"{kind}/{name}" for name in _names_under(records, f"{kind}/(.+)")}
    exact = "exact" if kind == "reverse_kl" else "sampled"
    spec = ("reverse_kl_by_teacher", "Distance from each teacher", f"{exact} reverse KL, nats/token", "")
    return _named_figures(spec, metrics, records)


def _named_figures(
    spec: tuple[str, str, str, str], metrics: Mapping[str, str], records: Sequence[dict[str, Any]]
) -> list[Figure]:
    """One figure with a line per name, each in its own colour."""
    lines = [_line(name, metric, records, colour) for (name, metric), colour in zip(metrics.items(), cycle(SERIES))]
    drawn = [line for line in lines if line.steps]
    return [Curves(*spec[:3], drawn, spec[3])] if drawn else []


def _teacher_sources(settings: Settings) -> dict[str, str]:
    """Every teacher's path, hub id or address by its name; a single one has no name."""
    url, model, several = (_read(settings, name) for name in ("teacher_server_url", "teacher_model", "teachers"))
    single = {"server_url": url, "model": model} if url else model
    named = ({"": single} if single else {}) | (several or {})
    return {name: _source(source) for name, source in named.items()}


def _read(settings: Settings, name: str) -> Any:
    """The value of a setting that is written in YAML; None if it is not given."""
    written = _given(settings, name)
    return require("yaml", "train").safe_load(written) if written else None


def _source(source: Any) -> str:
    """A teacher as text: a server by its address, or addresses, and the files that were named with it."""
    if not isinstance(source, dict):
        return ", ".join(source) if isinstance(source, list) else str(source)
    served, model = _source(source["server_url"]), source.get("model")
    return f"{served} ({_shortened(str(model))})" if model else served


def _teachers(settings: Settings, records: Sequence[dict[str, Any]], figures: Sequence[Figure]) -> str:
    """Which teachers there are, of what kind, and, with several, how far the student is from each."""
    rows = []
    for name, source in _teacher_sources(settings).items():
        first = source.strip("'\"[] ")
        kind = next((kind for start, kind in _TEACHER_KINDS.items() if first.startswith(start)), _LOCAL)
        metric = next((f"{kl}/{name or 'default'}" for kl in ("reverse_kl", "sampled_reverse_kl")
                       if series(records, f"{kl}/{name or 'default'}")[0]), "")  # fmt: skip
        ends = _first_and_last_fifth(records, metric)
        cells = [f"{ends[0]:.3f}", f"{ends[1]:.3f}"] if ends else ["", ""]
        rows.append([name or "default", source, kind, *cells])
    if not rows:
        return ""
    headers = ["teacher", "model or address", "kind", "reverse KL, first fifth", "reverse KL, last fifth"]
    if len(rows) == 1:
        headers, rows = headers[:3], [row[:3] for row in rows]
    body = f'<div class="teachers">{table(headers, rows)}</div>{figures_html(figures)}'
    return section("teachers", "Teachers", body)


def _samples(path: Path) -> str:
    records = read_records(path)
    if not records:
        return '<p class="note">The run kept no samples; samples_per_step sets how many are kept.</p>'
    return KEY + samples_html(chosen(records), str(path))


def _seconds(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

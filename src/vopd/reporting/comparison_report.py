"""The report of a comparison: several estimators from one student, on the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

from vopd.errors import DataError, counted
from vopd.estimators.policy_gradient import OPD

from .colours import colour_of
from .comparison import Comparison, read_comparison
from .drawing import figures_html
from .figures import Curves, Figure, Line, Row, Rows
from .page import escape, folded, page, section, table, tiles
from .png import write_png
from .run_files import MEASURED_FILE, METRICS_FILE, SAMPLES_FILE, read_json, read_records, series
from .run_report import timing_row, timing_split
from .samples_page import KEY, samples_html
from .tables import comparison_tables
from .variance_report import variance_beside

_ABSENT = "the runs logged no such metrics"
# Figures of metrics along the runs: name, title, unit, metric, the metric that it is divided by, steps of the mean.
_Spec = tuple[str, str, str, str, str, int]
_TRAINING = (
    ("training_reverse_kl", "Training batches", "sampled reverse KL, nats/token", "sampled_reverse_kl", "", 15),
    ("grad_norm", "Gradient norm", "before clipping", "grad_norm", "", 15),
    ("advantage_std", "Spread of the advantages", "standard deviation over tokens, nats", "advantage/std", "", 15),
    ("completion_length", "Completion length", "tokens", "completion_length", "", 15),
)
_LEFT = "variance with the baseline / without"
_HURTS = "share of tokens with more variance than without"
_VARIANCE = (
    ("variance_value", "Variance left by the value baseline", _LEFT, "variance/value", "variance/none", 3),
    ("variance_optimal", "Variance left by the optimal baseline", _LEFT, "variance/optimal", "variance/none", 3),
    ("value_hurts_share", "Where the value baseline hurts", _HURTS, "value_hurts_share", "", 3),
)
_VARIANCE_NOTE = (
    "Each run at its own parameters: the share of the variance that a baseline would leave, in the logits, mean over "
    "tokens. Below 1 the baseline helps."
)
# Metrics of every run, by its folder.
Records = dict[str, list[dict[str, Any]]]
# (step, value) pairs.
Curve = Sequence[tuple[float, float]]


def comparison_report(folder: Path) -> tuple[str, list[Figure]]:
    """The page of the comparison in `folder`, and its figures. Runs whose files are gone have no curves.

    Raises:
        DataError: comparison.json cannot be read, or a run has a file that vopd did not write.
    """
    comparison = read_comparison(folder)
    if not comparison.runs:
        raise DataError(f"{folder} compares no runs")
    records = _records(comparison, folder)
    outcome = _outcome_figures(comparison)
    training, variance = (_metric_figures(comparison, records, specs) for specs in (_TRAINING, _VARIANCE))
    timing = _timing_figures(comparison, records)
    measured, more = variance_beside(folder)
    names = ", ".join(f"{name} {value}" for name, value in comparison.settings.items() if name in ("steps", "batch"))
    parts = [
        tiles(_facts(comparison)),
        section("evaluation", "Results", _results(comparison)),
        section("outcome", "Distance from the teacher and gradient noise", figures_html(outcome)),
        section("progress", "Training", figures_html(training)) if training else "",
        section("variance", "Gradient variance during training", figures_html(variance, _ABSENT), _VARIANCE_NOTE),
        measured,
        section("time", "Time", figures_html(timing, _ABSENT)),
        section("samples", "Samples", _samples(comparison, folder)),
        section("settings", "Settings", _settings(comparison)),
    ]
    title = f"{len(comparison.estimators)} estimators compared, {comparison.seeds_label}"
    return page(title, f"Same student, teacher and prompts for all; {names}", parts), [
        *outcome, *training, *variance, *more, *timing,
    ]  # fmt: skip


def draw_comparison(comparison: Comparison, folder: str | Path, path: str | Path) -> None:
    """Draw a comparison as a PNG: held-out reverse KL, gradient noise, training divergence, accuracy.

    Args:
        folder: that has the runs' folders; training curves come from their metrics.jsonl.
        path: of the PNG. Needs the extra `report`.
    """
    training = _metric_figures(comparison, _records(comparison, Path(folder)), _TRAINING)
    found = {figure.name: figure for figure in (*_outcome_figures(comparison), *training)}
    shown = [found[name] for name in ("held_out", "noise", "training_reverse_kl", "accuracy") if name in found]
    write_png(shown, path, f"Same student, teacher and prompts for every estimator ({comparison.seeds_label})")


def _records(comparison: Comparison, folder: Path) -> Records:
    return {run.directory: read_records(folder / run.directory / METRICS_FILE) for run in comparison.runs}


def _facts(comparison: Comparison) -> list[tuple[str, str, str]]:
    best = min(comparison.estimators, key=comparison.reverse_kl)
    top = max(comparison.estimators, key=lambda name: comparison.score(name).value)
    score, before = comparison.score(top), comparison.start.student_score
    facts = [
        ("student before", f"{comparison.start.reverse_kl.value:.3f}", "reverse KL, nats/token"),
        ("closest to the teacher", f"{comparison.reverse_kl(best):.3f}", best),
        ("accuracy before", f"{before.value:.1%}", f"95 %: {before.low:.1%} to {before.high:.1%}"),
        ("highest accuracy", f"{score.value:.1%}", f"{top}; 95 %: {score.low:.1%} to {score.high:.1%}"),
    ]
    noise = {name: value for name, value in comparison.relative_noise().items() if value}
    if OPD.name in noise and len(noise) > 1:
        least = min(noise, key=noise.__getitem__)
        facts.append(("least sampling noise", f"{noise[least]:.2g}", f"{least}; {OPD.name} = 1"))
    return facts


def _results(comparison: Comparison) -> str:
    return "".join(
        f'<h3>{escape(title)}</h3>{table(headers, rows)}<p class="note">{escape(note)}</p>'
        for title, headers, rows, note in comparison_tables(comparison)
    )


def _outcome_figures(comparison: Comparison) -> list[Figure]:
    note = f"{comparison.curve_note} {_seeds_note(comparison)}".strip()
    figures: list[Figure] = []
    if held_out := seed_lines([(run.estimator, run.curve) for run in comparison.runs], comparison.colours):
        title, unit = "Distance from the teacher", "held-out reverse KL, exact, nats/token"
        remark = f"Dashed: the student before training. {note}".rstrip()
        before = next((run.curve[0][1] for run in comparison.runs if run.curve and run.curve[0][0] == 0), None)
        marks = [] if before is None else [("student before", before)]
        figures.append(Curves("held_out", title, unit, held_out, remark, marks=marks))
    bars = [
        Row(name, f"{value:.2g}" if value else "0, exact", [(name, value, colour_of(name, comparison.colours))])
        for name, value in comparison.relative_noise().items()
    ]
    if bars:
        unit, at = f"variance from sampling the tokens, {OPD.name} = 1", "At the student before training."
        figures.append(Rows("noise", "Gradient noise", unit, bars, at))
    curves = [(run.estimator, [(x, 100 * y) for x, y in run.accuracy_curve]) for run in comparison.runs]
    if learned := seed_lines(curves, comparison.colours):
        unit = "accuracy on held-out problems, %, greedy"
        figures.append(Curves("accuracy_curve", "Learning curve", unit, learned, note, from_zero=False))
    return [*figures, _accuracy(comparison)]


def _accuracy(comparison: Comparison) -> Rows:
    start = comparison.start
    before, teacher = 100 * start.student_score.value, 100 * start.teacher_score.value
    rows = []
    for name in comparison.estimators:
        score = comparison.score(name)
        parts = [(name, 100 * score.value, colour_of(name, comparison.colours))]
        rows.append(Row(name, f"{100 * score.value:.1f} %", parts, (100 * score.low, 100 * score.high)))
    return Rows(
        "accuracy", "Accuracy on held-out problems", "%, greedy, 95 % interval over problems", rows,
        f"Dashed: the student before training, {before:.0f} %, and the teacher, {teacher:.0f} %.",
        [("student before", before), ("teacher", teacher)],
    )  # fmt: skip


def _metric_figures(comparison: Comparison, records: Records, specs: Sequence[_Spec]) -> list[Figure]:
    figures: list[Figure] = []
    for name, title, unit, metric, divisor, width in specs:
        found = [(run.estimator, _series(records[run.directory], metric, divisor)) for run in comparison.runs]
        if lines := seed_lines(found, comparison.colours, width):
            figures.append(Curves(name, title, unit, lines, _seeds_note(comparison)))
    return figures


def _series(records: Sequence[dict[str, Any]], metric: str, divisor: str) -> Curve:
    under = dict(zip(*series(records, divisor)))
    curve = list(zip(*series(records, metric)))
    return [(step, value / under[step]) for step, value in curve if under.get(step)] if divisor else curve


def seed_lines(
    found: Sequence[tuple[str, Curve]], colours: Mapping[str, str] | None = None, width: int = 1
) -> list[Line]:
    """One line per name: the mean of its curves with their range as band, or the curve itself if there is only one.

    Skips curves without points, of runs that crashed. The mean is over the steps that all others have.

    Args:
        found: name and curve of every run.
        colours: of custom estimators.
        width: steps of the running mean that is drawn.
    """
    curves: dict[str, list[dict[float, float]]] = {}
    for name, curve in found:
        if curve:
            curves.setdefault(name, []).append(dict(curve))
    lines: list[Line] = []
    for name, runs in curves.items():
        steps = sorted(set.intersection(*map(set, runs)))
        columns = [[run[step] for run in runs] for step in steps]
        means = [sum(column) / len(column) for column in columns]
        band = [(min(column), max(column)) for column in columns] if len(runs) > 1 else []
        # Learning rates of one estimator share its colour; those after the first are dashed.
        dashed = any(line.label.split(" ")[0] == name.split(" ")[0] for line in lines)
        lines.append(Line(name, steps, means, colour_of(name, colours), width, dashed, band))
    return lines


def _seeds_note(comparison: Comparison) -> str:
    seeds = len(comparison.seeds)
    return f"Mean of {seeds} seeds; the band is their range." if seeds > 1 else ""


def _timing_figures(comparison: Comparison, records: Records) -> list[Figure]:
    rows = []
    for name in comparison.estimators:
        splits = [split for run in comparison.runs_of(name) if (split := timing_split(records[run.directory]))]
        if splits:
            mean = {part: sum(split.get(part, 0.0) for split in splits) / len(splits) for part in splits[0]}
            if comparison.by_processor:
                spent = sum(map(comparison.seconds, comparison.runs_of(name))) / len(comparison.runs_of(name))
                mean = {part: seconds * spent / sum(mean.values()) for part, seconds in mean.items()}
            rows.append(timing_row(name, mean))
    unit, note = "wall seconds of one run, all steps", ""
    if comparison.by_processor:
        unit = "processor seconds of one run, all steps"
        note = "Wall time is not compared; it only sets the proportions of the phases."
    elif comparison.jobs != 1:
        note = "Runs may have shared the processor: do not compare their wall time."
    return [Rows("timing", "Time by phase", unit, rows, note)] if rows else []


def _samples(comparison: Comparison, folder: Path) -> str:
    """The last training sample of each estimator's first run, and greedy completions if they were kept."""
    first = {name: folder / comparison.runs_of(name)[0].directory for name in comparison.estimators}
    articles = "".join(
        samples_html([{**records[-1], "label": name}], str(run / SAMPLES_FILE))
        for name, run in first.items()
        if (records := read_records(run / SAMPLES_FILE))
    )
    greedy = _greedy(folder, first)
    more = folded("Greedy completions of held-out problems", greedy) if greedy else ""
    return (KEY + articles if articles else "") + more or '<p class="note">The runs kept no samples.</p>'


def _greedy(folder: Path, first: dict[str, Path]) -> str:
    """Completions of the first held-out problems by all models; measured.json of a demo has them."""
    texts = dict(read_json(folder / "start" / MEASURED_FILE).get("samples", {}))
    texts |= {name: found for name, run in first.items() if (found := read_json(run / MEASURED_FILE).get("samples"))}
    if not texts:
        return ""
    articles = []
    for problem, *samples in zip(read_records(folder / "held_out.jsonl") or repeat({}), *texts.values()):
        shown = "\ncorrect answer: ".join(str(problem[name]) for name in ("prompt", "answer") if name in problem)
        question = f'<div class="prompt">{escape(shown)}</div>' if shown else ""
        answers = (
            f'<h3>{escape(name)}</h3><p class="completion">{escape(sample)}</p>'
            for name, sample in zip(texts, samples, strict=True)
        )
        articles.append(f"<article>{question}{''.join(answers)}</article>")
    return "".join(articles)


def _settings(comparison: Comparison) -> str:
    rows: Sequence[Sequence[str]] = [[name, str(value)] for name, value in comparison.settings.items()]
    headers = ["folder", "estimator", "seed", "processor seconds", "wall time"]
    runs = []
    for run in comparison.runs:
        spent = "-" if run.processor_seconds is None else f"{run.processor_seconds:.0f} s"
        runs.append([run.directory, run.estimator, str(run.seed), spent, f"{run.seconds:.0f} s"])
    folders = folded(f"folders of {counted(len(runs), 'run')}", table(headers, runs))
    return f'<div class="settings">{table(["setting", "value"], rows)}{folders}</div>'

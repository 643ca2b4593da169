"""The report of a comparison: estimators from one student, on the same prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vopd.errors import DataError
from vopd.statistics import mean_score

from .bands import Points, seed_lines, seeds_note
from .comparison import (
    Comparison,
    accuracy_difference,
    mean_reverse_kl,
    read_comparison,
    relative_noise,
    reverse_kl_difference,
    score_of,
)  # fmt: skip
from .drawing import figures_html
from .figures import Bar, Bars, Curves, Dot, Dots, Figure
from .page import escape, folded, page, section, table, tiles
from .plots import colour_of
from .run_files import METRICS_FILE, read_metrics, series
from .run_report import SAMPLES_FILE, timing_bar, timing_split
from .samples_page import KEY, samples_html
from .stability import stability_html
from .tables import seeds_label
from .variance_report import variance_beside

_SMOOTHING = 15
Records = dict[str, list[dict[str, Any]]]


def comparison_report(folder: Path) -> tuple[str, list[Figure]]:
    """The page of the comparison in `folder`, and its figures. Runs whose own files are gone are left out of curves.

    Raises:
        DataError: comparison.json cannot be read, or a run's files are not what vopd writes.
    """
    comparison = read_comparison(folder)
    if not comparison.runs:
        raise DataError(f"{folder} compares no runs")
    records = {
        run.directory: read_metrics(folder / run.directory)
        for run in comparison.runs
        if (folder / run.directory / METRICS_FILE).is_file()
    }
    outcome = _outcome_figures(comparison)
    training = _training_figures(comparison, records)
    variance = _variance_figures(comparison, records)
    timing = _timing_figures(comparison, records)
    measured, more = variance_beside(folder)
    several = any(run.accuracy_curve for run in comparison.runs)
    names = ", ".join(f"{name} {value}" for name, value in comparison.settings.items() if name in ("steps", "batch"))
    parts = [
        tiles(_facts(comparison)),
        section("evaluation", "Results", _results(comparison), _results_note(comparison)),
        section("outcome", "What is left of the distance, and how noisy the gradient is", figures_html(outcome)),
        *([section("progress", "Training", figures_html(training))] if training else []),
        section("variance", "Gradient variance along the runs", _or_absent(variance), _VARIANCE_NOTE),
        *measured,
        *([section("stability", "Stability and price", stability_html(comparison))] if several else []),
        section("time", "Time", _or_absent(timing)),
        section("samples", "Samples", _samples(comparison, folder)),
        section("settings", "Settings", _settings(comparison)),
    ]
    title = f"{len(comparison.estimators)} estimators compared, {seeds_label(comparison)}"
    return page(title, f"The same student, teacher and prompts for all; {names}", parts), [
        *outcome, *training, *variance, *more, *timing,
    ]  # fmt: skip


_VARIANCE_NOTE = (
    "Each run at its own parameters: how much of the variance without baseline a baseline would leave, in the logits, "
    "mean over tokens. Below 1 the baseline helps."
)


def _facts(comparison: Comparison) -> list[tuple[str, str, str]]:
    best = min(comparison.estimators, key=lambda name: mean_reverse_kl(comparison.runs_of(name)))
    top = max(comparison.estimators, key=lambda name: score_of(comparison.runs_of(name)).value)
    score, before = score_of(comparison.runs_of(top)), mean_score(comparison.start.student_outcomes)
    facts = [
        ("student before", f"{comparison.start.reverse_kl.value:.3f}", "reverse KL, nats a token"),
        ("nearest to the teacher", f"{mean_reverse_kl(comparison.runs_of(best)):.3f}", best),
        ("accuracy before", f"{before.value:.1%}", f"95 %: {before.low:.1%} to {before.high:.1%}"),
        ("highest accuracy", f"{score.value:.1%}", f"{top}; 95 %: {score.low:.1%} to {score.high:.1%}"),
    ]
    noise = {name: value for name, value in relative_noise(comparison.start, comparison.estimators).items() if value}
    if "opd" in noise and len(noise) > 1:
        least = min(noise, key=lambda name: noise[name])
        facts.append(("least sampling noise", f"{noise[least]:.2g}", f"{least}; opd = 1"))
    return facts


def _results(comparison: Comparison) -> str:
    noise = relative_noise(comparison.start, comparison.estimators)
    several = len(comparison.seeds) > 1
    first = comparison.start.reverse_kl
    before = f"{first.value:.3f}" if several else f"{first.value:.3f} [{first.low:.3f}, {first.high:.3f}]"
    start = mean_score(comparison.start.student_outcomes)
    rows = [["student before", before, str(start), ""]]
    for name in comparison.estimators:
        runs = comparison.runs_of(name)
        divergence = f"{mean_reverse_kl(runs):.3f} " + (
            f"({min(run.reverse_kl.value for run in runs):.3f} to {max(run.reverse_kl.value for run in runs):.3f})"
            if several
            else f"[{runs[0].reverse_kl.low:.3f}, {runs[0].reverse_kl.high:.3f}]"
        )
        rows.append([name, divergence, str(score_of(runs)), f"{noise[name]:.3f}" if name in noise else "-"])
    rows.append(["teacher", "0", str(mean_score(comparison.start.teacher_outcomes)), ""])
    spread = "reverse KL (range over seeds)" if several else "reverse KL [95 %]"
    return table(["", spread, "accuracy [95 %]", "noise"], rows) + _differences(comparison)


def _differences(comparison: Comparison) -> str:
    """Every estimator less the first, seed by seed and problem by problem."""
    reference, *others = comparison.estimators
    rows = []
    for name in others:
        gap = reverse_kl_difference(comparison, name, reference)
        divergence = f"{gap.value:+.3f}, lower in {gap.lower} of {gap.seeds} seeds"
        rows.append([name, str(accuracy_difference(comparison, name, reference)), divergence])
    return table([f"less {reference}", "accuracy [95 %]", "reverse KL"], rows) if rows else ""


def _results_note(comparison: Comparison) -> str:
    return (
        f"{len(comparison.start.student_outcomes)} held-out problems. Reverse KL is exact, in nats a token on the "
        "student's own samples. Intervals and p-values are over problems: they do not say how sure the training seeds "
        f"are ({seeds_label(comparison)}). Noise: variance of the gradient from drawing the tokens, at the student "
        "before."
    )


def _outcome_figures(comparison: Comparison) -> list[Figure]:
    before, teacher = (
        100 * mean_score(outcomes).value
        for outcomes in (comparison.start.student_outcomes, comparison.start.teacher_outcomes)
    )
    note = seeds_note(len(comparison.seeds))
    held_out = seed_lines([(run.estimator, _points(run.curve)) for run in comparison.runs])
    learned = seed_lines(
        [(run.estimator, _points([(x, 100 * y) for x, y in run.accuracy_curve])) for run in comparison.runs]
    )
    noise = relative_noise(comparison.start, comparison.estimators)
    bars = [
        Bar(name, [(name, value, colour_of(name))], f"{value:.2g}" if value else "0, exact")
        for name, value in noise.items()
    ]
    dots = []
    for name in comparison.estimators:
        score = score_of(comparison.runs_of(name))
        text = f"{100 * score.value:.1f} %"
        dots.append(Dot(name, 100 * score.value, 100 * score.low, 100 * score.high, colour_of(name), text))
    figures: list[Figure] = [
        Curves("held_out", "Distance from the teacher", "held-out reverse KL, exact, nats a token", held_out, note),
        Dots(
            "accuracy", "Right answers on held-out problems", "%, greedy, 95 % interval over problems", dots,
            f"Dashed: the student before, {before:.0f} %, and the teacher, {teacher:.0f} %.",
            (("student before", before), ("teacher", teacher)),
        ),
    ]  # fmt: skip
    if learned:
        unit = "right answers on held-out problems, %, greedy"
        figures.insert(1, Curves("accuracy_curve", "Learning curve", unit, learned, note, from_zero=False))
    if bars:
        figures.insert(1, Bars("noise", "Noise of the gradient", "variance from drawing the tokens, opd = 1", bars))
    return figures


def _points(curve: Sequence[tuple[float, float]]) -> Points:
    return [x for x, _ in curve], [y for _, y in curve]


def _training_figures(comparison: Comparison, records: Records) -> list[Figure]:
    specs = (
        ("training_reverse_kl", "Training batches", "sampled reverse KL, nats a token", "sampled_reverse_kl"),
        ("grad_norm", "Norm of the gradient", "before clipping", "grad_norm"),
        ("advantage_std", "Spread of the advantages", "standard deviation over tokens, nats", "advantage/std"),
        ("completion_length", "Length of the completions", "tokens", "completion_length"),
    )
    found = []
    for name, title, unit, metric in specs:
        runs = [(run.estimator, (steps, values)) for run, steps, values in _series(comparison, records, metric)]
        lines = seed_lines(runs, _SMOOTHING)
        if lines:
            note = f"Mean over {_SMOOTHING} logged steps. {seeds_note(len(comparison.seeds))}".rstrip()
            found.append(Curves(name, title, unit, lines, note))
    return list(found)


def _variance_figures(comparison: Comparison, records: Records) -> list[Figure]:
    figures: list[Figure] = []
    note = seeds_note(len(comparison.seeds))
    for name, title in (("value", "Left by the value baseline"), ("optimal", "Left by the optimal baseline")):
        ratios = []
        for run, steps, values in _series(comparison, records, f"variance/{name}"):
            plain = dict(zip(*series(records[run.directory], "variance/none")))
            points = [(step, value / plain[step]) for step, value in zip(steps, values) if plain.get(step)]
            if points:
                ratios.append((run.estimator, _points(points)))
        if ratios:
            unit = "variance with it / variance without baseline"
            figures.append(Curves(f"variance_{name}", title, unit, seed_lines(ratios, 3), note))
    hurts = [
        (run.estimator, (steps, values)) for run, steps, values in _series(comparison, records, "value_hurts_share")
    ]
    if hurts:
        unit = "share of tokens with more variance than without"
        lines = seed_lines(hurts, 3)
        figures.append(Curves("value_hurts_share", "Where the value baseline hurts", unit, lines, note))
    return figures


def _series(comparison: Comparison, records: Records, metric: str) -> list[tuple[Any, list[int], list[float]]]:
    found = [(run, *series(records[run.directory], metric)) for run in comparison.runs if run.directory in records]
    return [(run, steps, values) for run, steps, values in found if steps]


def _timing_figures(comparison: Comparison, records: Records) -> list[Figure]:
    rows = []
    for name in comparison.estimators:
        splits = [
            split
            for run in comparison.runs_of(name)
            if run.directory in records and (split := timing_split(records[run.directory]))
        ]
        if splits:
            mean = {part: sum(split.get(part, 0.0) for split in splits) / len(splits) for part in splits[0]}
            rows.append(timing_bar(name, mean))
    note = "Runs may have shared the processor with others: compare with care."
    return [Bars("timing", "Where the time goes", "seconds of one run, all steps", rows, note)] if rows else []


def _samples(comparison: Comparison, folder: Path) -> str:
    """The last training sample of each estimator's first run, and greedy completions where they were kept."""
    shown = []
    for name in comparison.estimators:
        path = folder / comparison.runs_of(name)[0].directory / SAMPLES_FILE
        records = read_metrics(path) if path.is_file() else []
        if records:
            shown.append((str(path), {**records[-1], "label": name}))
    articles = "".join(samples_html([record], source) for source, record in shown)
    greedy = _greedy(comparison, folder)
    if not articles and not greedy:
        return '<p class="note">The runs kept no samples.</p>'
    more = folded("Greedy completions of held-out problems", greedy) if greedy else ""
    return (KEY + articles if articles else "") + more


def _greedy(comparison: Comparison, folder: Path) -> str:
    texts: dict[str, list[str]] = dict(_measured_samples(folder / "start" / "measured.json"))
    for name in comparison.estimators:
        found = _measured_samples(folder / comparison.runs_of(name)[0].directory / "measured.json")
        if isinstance(found, list):
            texts[name] = found
    count = min((len(samples) for samples in texts.values()), default=0)
    rows = (
        f'<h3>{escape(name)}</h3><p class="completion">{escape(samples[index])}</p>'
        for index in range(count)
        for name, samples in texts.items()
    )
    per = len(texts)
    cells = list(rows)
    return "".join(
        f"<article>{_question(folder, index)}{''.join(cells[index * per : (index + 1) * per])}</article>"
        for index in range(count)
    )


def _question(folder: Path, index: int) -> str:
    path = folder / "held_out.jsonl"
    problems = read_metrics(path) if path.is_file() else []
    if index >= len(problems):
        return ""
    problem = problems[index]
    return f'<div class="prompt">{escape(problem.get("prompt", ""))}\nright: {escape(problem.get("answer", ""))}</div>'


def _measured_samples(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("samples", {}) if path.is_file() else {}
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path} is not a file that `vopd demo` wrote: {error}") from error


def _settings(comparison: Comparison) -> str:
    rows: Sequence[Sequence[str]] = [[name, str(value)] for name, value in comparison.settings.items()]
    runs = [[run.directory, run.estimator, str(run.seed), f"{run.seconds:.0f} s"] for run in comparison.runs]
    folders = folded(f"{len(runs)} runs and their folders", table(["folder", "estimator", "seed", "training"], runs))
    return f'<div class="settings">{table(["setting", "value"], rows)}{folders}</div>'


def _or_absent(figures: list[Figure]) -> str:
    return figures_html(figures) if figures else '<p class="note">Nothing to show: the runs kept no such metrics.</p>'

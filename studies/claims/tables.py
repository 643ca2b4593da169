"""The tables and sentences of the documents that come from the committed results; docs/generate.py puts them there."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from studies.claims import design
from studies.claims.comparisons import LEVEL, OWN_RATE, Runs, primary
from studies.claims.report import RESULTS, percent, read_kept
from studies.claims.verdicts import REFUTED, SETTINGS, SUPPORTED, UNDECIDED

FIRST = RESULTS / "first"
Table = tuple[Sequence[str], list[Sequence[str]]]
"""Head and rows."""
# How a table shows a number that supports the claim, leaves it open, contradicts it.
_MARKS = {1: "{}", 0: "*{}*", -1: "**{}**"}
_SIDES = {1: "supports", 0: "leaves it open", -1: "contradicts"}


def read_verdicts(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The claims with rules, numbers and verdicts."""
    found: list[dict[str, Any]] = json.loads((folder / "verdicts.json").read_text())
    return found


def read_first() -> dict[str, dict[str, Any]]:
    """The first study's claims."""
    found = json.loads((FIRST / "verdicts.json").read_text())
    found.append(json.loads((FIRST / "timings.json").read_text())["verdict"])
    return {entry["claim"]: entry for entry in sorted(found, key=lambda entry: entry["claim"])}


def read_comparisons(path: Path) -> dict[tuple[str, str, str, str, str], dict[str, str]]:
    """Rows by setting, rates, metric, first and second estimator."""
    with path.open() as file:
        return {(row["setting"], row["rates"], row["metric"], row["first"], row["second"]): row
                for row in csv.DictReader(file)}  # fmt: skip


# ---- verdicts ----------------------------------------------------------------------------------------------------


def verdicts(folder: Path = RESULTS) -> Table:
    """Every claim with its verdict, the numbers that decide it, and the first study's verdict."""
    first = read_first()
    body = [
        (f"({found['claim']}) {found['statement']}", f"**{found['verdict']}**", decisive(found["parts"]),
         _earlier(found["claim"], first)) for found in read_verdicts(folder)
    ]  # fmt: skip
    return ("claim", "verdict", "decisive numbers", "first study"), body


def _earlier(claim: str, first: Mapping[str, Mapping[str, Any]]) -> str:
    """The first study's verdict; it had (d1) and (d2) as one claim, (d)."""
    if claim in first:
        return str(first[claim]["verdict"])
    return f"{first[claim[0]]['verdict']} (d)"


def decisive(parts: Iterable[Mapping[str, Any]]) -> str:
    """A verdict's numbers by what they measure; the range of more than one per setting."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for part in parts:
        groups.setdefault(part["measure"], []).append(part)
    return "; ".join(f"{measure}: {_numbers(found)}" for measure, found in groups.items())


def _numbers(parts: Sequence[Mapping[str, Any]]) -> str:
    if len(parts) <= len(SETTINGS):
        return ", ".join(_MARKS[part["side"]].format(part["number"]) for part in parts)
    numbers = sorted((part["number"] for part in parts), key=float)
    against = sum(part["side"] == -1 for part in parts)
    marked = _MARKS[-1].format(against) if against else "0"
    return f"{numbers[0]} to {numbers[-1]} in {len(parts)} cases, {marked} against it"


def counts(folder: Path = RESULTS) -> str:
    """How many claims have which verdict."""
    found = [entry["verdict"] for entry in read_verdicts(folder)]
    each = ", ".join(f"{found.count(word)} {word}" for word in (SUPPORTED, REFUTED, UNDECIDED))
    return f"Of {len(found)} claims: {each}."


def rules(folder: Path = RESULTS) -> Table:
    """When each claim counts as supported and as refuted."""
    body = [(f"({found['claim']})", found["supported_if"], found["refuted_if"]) for found in read_verdicts(folder)]
    return ("claim", "supported if", "refuted if"), body


def numbers(folder: Path = RESULTS) -> dict[str, list[str]]:
    """All numbers of every claim, as sentences, under its statement and verdict."""
    return {
        f"({found['claim']}) {found['statement']}: {found['verdict']}":
            [f"{_SIDES[part['side']]}: {part['text']}" for part in found["parts"]]
        for found in read_verdicts(folder)
    }  # fmt: skip


def first_study() -> Table:
    """The first study's claims, verdicts and numbers."""
    body = [
        (f"({claim}) {found['statement']}", found["verdict"], "; ".join(found["numbers"]))
        for claim, found in read_first().items()
    ]
    return ("claim", "verdict", "numbers"), body


# ---- training ----------------------------------------------------------------------------------------------------


def training(folder: Path = RESULTS) -> dict[str, Table]:
    """Means over seeds of every estimator, and its differences from opd and vopd, by setting and rates."""
    runs = read_kept(folder).runs
    compared = read_comparisons(folder / "comparisons.csv")
    head = ("estimator", "learning rate", "seeds", "reverse KL", "greedy accuracy")
    head += ("KL, difference from opd", "from vopd")
    found: dict[str, Table] = {}
    for setting in SETTINGS:
        for rates, name in runs.cells(setting):
            title = f"{setting}, " + ("each at its own rate" if rates == OWN_RATE else f"all at {design.COMMON_RATE:g}")
            differences = [_difference(compared, (setting, rates), name, other) for other in ("opd", "vopd")]
            row = [f"`{name}`", f"{runs.rate(setting, rates, name):g}", *_means(runs, setting, rates, name)]
            found.setdefault(title, (head, []))[1].append([*row, *differences])
    return found


def _means(runs: Runs, setting: str, rates: str, name: str) -> list[str]:
    distance, accuracy = (runs.values(setting, rates, [name], what)[0] for what in ("reverse_kl", "accuracy"))
    return [f"{len(distance)}", f"{fmean(distance):.4f}", percent(fmean(accuracy))]


def _difference(compared: Mapping[Any, Mapping[str, str]], place: tuple[str, str], name: str, other: str) -> str:
    """Reverse KL of an estimator less another's, bold if it is significant after Holm's correction."""
    row = compared.get((*place, "reverse_kl", name, other))
    ends = [float(row[key]) for key in ("difference", "low", "high")] if row else []
    if not row and (row := compared.get((*place, "reverse_kl", other, name))):
        ends = [-float(row[key]) for key in ("difference", "high", "low")]
    return _interval(ends, float(row["holm"])) if row else ""


def _interval(ends: Sequence[float], adjusted: float) -> str:
    value, low, high = (f"{end:+.4f}" for end in ends)
    return f"{_MARKS[-1 if adjusted < LEVEL else 1].format(value)} [{low}, {high}]"


def primary_comparisons(folder: Path = RESULTS) -> Table:
    """The comparisons that verdicts rest on, in reverse KL and in greedy accuracy."""
    compared = read_comparisons(folder / "comparisons.csv")
    body = []
    for setting, rates, first, second in primary():
        rows = [compared[setting, rates, metric, first, second] for metric in ("reverse_kl", "accuracy")]
        cells = [cell for row in rows for cell in
                 (_interval([float(row[key]) for key in ("difference", "low", "high")], float(row["holm"])),
                  f"{float(row['holm']):.2g}")]  # fmt: skip
        lower = f"{rows[0]['seeds_lower']} of {rows[0]['seeds']}"
        body.append([f"{setting}: `{first}` - `{second}`", *cells[:2], lower, *cells[2:]])
    return ("comparison", "reverse KL", "Holm p", "seeds lower", "greedy accuracy", "Holm p"), body


def precision(folder: Path = RESULTS) -> Table:
    """How well a run's figure is known, by completions and checkpoints."""
    found = json.loads((folder / "precision.json").read_text())
    pairs = [key for key in found[0] if " - " in key]
    parts = ("error", "deviation")
    size = json.loads((folder / "study.json").read_text())["size"]["problems"]
    body = [
        [row["setting"], f"{row['checkpoints']}", f"{size * row['share']:.0f}", f"{row['error']:.4f}",
         *(f"{row[pair][part]:.4f}" for pair in pairs for part in parts)] for row in found
    ]  # fmt: skip
    head = ("setting", "checkpoints", "completions at each", "error of a run")
    return (*head, *(f"{pair}: {part}" for pair in pairs for part in parts)), body


def pilot(records: Iterable[Mapping[str, Any]] | None = None) -> Table:
    """The pilot's reverse KL at every learning rate; the least of an estimator is bold, and its rate the study's."""
    found = list(design.committed_pilot() if records is None else records)
    body = []
    for setting in SETTINGS:
        best = design.best_rates(found, setting)
        for name, chosen in best.items():
            tried = {one["rate"]: one for one in found if (one["setting"], one["estimator"]) == (setting, name)}
            cells = [_tried(tried.get(rate), rate == chosen) for rate in design.RATES]
            body.append([setting, f"`{name}`", *cells])
    return ("setting", "estimator", *(f"{rate:g}" for rate in design.RATES)), body


def _tried(record: Mapping[str, Any] | None, best: bool) -> str:
    if record is None:
        return "-"
    return "crashed" if "failed" in record else _MARKS[-1 if best else 1].format(f"{record['reverse_kl']:.4f}")


def biases(folder: Path = RESULTS) -> Table:
    """Squared bias, as a share of the squared gradient, of everything that has one on main."""
    estimators = [found["estimators"] for found in read_kept(folder).fixed.values()]
    body = [
        [f"`{label}`", *(_bias(table[label]["relative_bias"]) if label in table else "-" for table in estimators)]
        for label, found in estimators[0].items() if found["relative_bias"]["low"] > 0
    ]  # fmt: skip
    return ("estimator", *SETTINGS), body


def _bias(found: Mapping[str, float]) -> str:
    return f"{found['value']:.2g} [{found['low']:.2g}, {found['high']:.2g}]"


# ---- what was run ------------------------------------------------------------------------------------------------


def what_was_run(folder: Path = RESULTS) -> Table:
    """The measured part of the settings, and the runs of each."""
    kept = read_kept(folder)
    starts = [kept.study["starts"][name] for name in SETTINGS]
    ran = [[record for record in kept.records if record["setting"] == name] for name in SETTINGS]
    seeds = [sorted({record["seed"] for record in records}) for records in ran]
    body = [
        ("reverse KL before training", *(f"{start['reverse_kl']:.3f}" for start in starts)),
        ("greedy accuracy of the student before training, of the teacher",
         *(f"{percent(start['accuracy'])}, {percent(start['teacher_accuracy'])}" for start in starts)),
        ("seeds", *(f"{len(some)} ({some[0]} to {some[-1]})" for some in seeds)),
        ("training runs", *(f"{len(records)}" for records in ran)),
        ("of them crashed", *(f"{sum('failed' in record for record in records)}" for records in ran)),
    ]  # fmt: skip
    return ("", *SETTINGS), body


def when_and_where(folder: Path = RESULTS) -> str:
    """Date, machine, commits and time of the runs, the measurements and the timings."""
    kept = read_kept(folder)
    sessions = kept.study["sessions"]
    hours = sum(session["seconds"] for session in sessions) / 3600
    fixed = [found["facts"] for found in kept.fixed.values()]
    return (
        f"Training runs: {_facts(sessions)}, {hours:.1f} hours with {sessions[-1]['jobs']} runs at a time. "
        f"Measurements at fixed parameters: {_facts(fixed)}. Costs: {_facts([kept.cost['machine']])}."
    )


def repeated(folder: Path = RESULTS) -> str:
    """How many of the repeated runs came out the same."""
    found = json.loads((folder / "repeated.json").read_text())["runs"]
    same = sum(run["weights"] and run["log"] and run["measured"] for run in found)
    return (
        f"{len(found)} runs, {len(found) // len(SETTINGS)} of each setting, were repeated on the same machine: in "
        f"{same} of them the trained weights, the log and all measurements are equal to the last bit."
    )


def _facts(found: Sequence[Mapping[str, Any]]) -> str:
    """Each value once, in order."""
    machines = [{**facts, "commit": facts["commit"][:7]} for facts in found]
    date, commit, python, torch = (
        " and ".join(dict.fromkeys(facts[key] for facts in machines)) for key in ("date", "commit", "python", "torch")
    )
    processor = " and ".join(dict.fromkeys(facts.get("processor", facts.get("device")) for facts in machines))
    return f"{date}, commit {commit}, {processor}, Python {python}, torch {torch}"


def headline(folder: Path = RESULTS) -> str:
    """What the first figure shows, in numbers."""
    kept = read_kept(folder)
    runs, noise = kept.runs, kept.fixed["main"]["estimators"]
    seeds = len(runs.of("main", OWN_RATE, "opd"))
    left = {name: noise[name]["token_over_opd"]["value"] for name in ("vopd", "vopd_optimal")}
    names = ("opd", "vopd", "vopd_optimal", "full_rkl")
    ends = ", ".join(f"`{name}` {fmean(runs.values('main', OWN_RATE, [name])[0]):.3f}" for name in names)
    return (
        f"Left: the paper's `vopd` leaves {left['vopd']:.2f} of the sampling noise of vanilla `opd`, `vopd_optimal` "
        f"{left['vopd_optimal']:.2f}, `full_rkl` none. Right: reverse KL to the teacher after training, each estimator "
        f"at its own learning rate, {seeds} seeds: {ends} nats/token. 95 % intervals. {counts(folder)} Models under a "
        f"million parameters, two CPU cores (`make study-claims`, {kept.study['sessions'][-1]['date']}); large models "
        "were not measured."
    )

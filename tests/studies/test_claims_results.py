"""The claims study's report, tables and figures follow from the records, in seconds, and only from a whole study."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

import pytest

from studies import made_up
from studies.claims import collect, design, figures, tables
from studies.claims.comparisons import OWN_RATE, Runs, compare_all
from studies.claims.report import as_record, read_kept, write_report
from studies.claims.run import Study
from studies.claims.training_figures import curves_of
from studies.claims.verdicts import SETTINGS, all_verdicts
from vopd.experiments.grid import START

OUTPUTS = ("comparisons.csv", "verdicts.json", "precision.json", "summary.txt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up study with its report."""
    found = made_up.write(tmp_path_factory.mktemp("results"))
    started = time.process_time()
    write_report(found)
    assert time.process_time() - started < 20
    return found


# ---- report ------------------------------------------------------------------------------------------------------


def test_the_verdicts_and_comparisons_follow_from_the_records(folder: Path) -> None:
    kept = read_kept(folder)
    compared = compare_all(kept.runs)
    verdicts = json.loads((folder / "verdicts.json").read_text())
    assert verdicts == json.loads(json.dumps([as_record(found) for found in all_verdicts(kept.evidence(compared))]))
    rows = list(csv.DictReader((folder / "comparisons.csv").read_text().splitlines()))
    assert [(row["metric"], row["first"], row["second"]) for row in rows] == [
        (entry.metric, entry.first, entry.second) for entry in compared
    ]
    assert [float(row["difference"]) for row in rows] == pytest.approx(
        [entry.difference.value for entry in compared], rel=1e-3
    )
    summary = (folder / "summary.txt").read_text()
    for found in verdicts:
        assert f"({found['claim']}) {found['statement']}: {found['verdict'].upper()}\n" in summary
        assert all(part["text"] in summary for part in found["parts"])


def test_the_summary_has_every_estimator_at_every_rate(folder: Path) -> None:
    kept = read_kept(folder)
    text = (folder / "summary.txt").read_text()
    for setting in SETTINGS:
        for rates, name in kept.runs.cells(setting):
            (values,) = kept.runs.values(setting, rates, [name])
            line = next(line for line in text.splitlines() if line.startswith(f"{setting}: {name} ")
                        and f" {kept.runs.rate(setting, rates, name):g} " in line)  # fmt: skip
            assert f" {len(values)} " in line and f" {sum(values) / len(values):.4f} " in line


# ---- an unfinished study -----------------------------------------------------------------------------------------


def finish(study: Study) -> list[Path]:
    """Pretend that everything is measured; returns the runs' files."""
    files = []
    for name, wanted in study.wanted().items():
        folders = [study.output / name / run.directory for run in study.runs(name, wanted)]
        for at in (*folders, study.output / name / START):
            at.mkdir(parents=True)
            files.append(at / "measured.json")
            measured = {"reverse_kl": [[10, [[1.0, 10], [2.0, 10]]]], "accuracy": 0.5, "sampled_accuracy": 0.5}
            start = {"student_outcomes": [True, False], "teacher_outcomes": [True], "reverse_kl": {"value": 0.3}}
            files[-1].write_text(json.dumps(start if at.name == START else measured))
    (study.output / "fixed.json").write_text(json.dumps(made_up.fixed()))
    (study.output / "cost.json").write_text(json.dumps(made_up.cost()))
    (study.output / "repeated.json").write_text(json.dumps(made_up.repeated()))
    session = {"facts": made_up.FACTS, "seconds": 60, "jobs": 2, "size": {}}
    (study.output / "sessions.jsonl").write_text(json.dumps(session) + "\n")
    return [path for path in files if path.parent.name != START]


def test_an_unfinished_study_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pilot.json").write_text(json.dumps(made_up.pilot()))
    monkeypatch.setattr(design, "PILOT_FILE", tmp_path / "pilot.json")
    study, results = Study(tmp_path / "runs", design.SMALL), tmp_path / "results"
    runs = finish(study)
    monkeypatch.setattr("sys.argv", ["collect", "--small", "--input", str(study.output), "--output", str(results)])
    assert collect.unfinished(study) == []

    def without(path: Path, text: str = "") -> str:
        """What is said while a file is missing, or has another text."""
        before = path.read_text()
        path.write_text(text) if text else path.unlink()
        assert collect.main() == 1 and not results.exists()
        path.write_text(before)
        return capsys.readouterr().out

    assert "missing runs: 1 of" in without(runs[-1])
    fixed = made_up.fixed()
    del fixed["sorting"]["along_training"]
    assert "fixed parameters" in without(study.output / "fixed.json", json.dumps(fixed))
    assert "the costs" in without(study.output / "cost.json")
    assert "repeated runs" in without(study.output / "repeated.json")
    assert collect.main() == 0
    kept = json.loads((results / "runs.json").read_text())
    assert len(kept) == len(runs) and {record["seed"] for record in kept} == {100, 101}
    start = json.loads((results / "study.json").read_text())["starts"]["main"]
    assert start == {"accuracy": 0.5, "teacher_accuracy": 1.0, "reverse_kl": 0.3}


# ---- tables ------------------------------------------------------------------------------------------------------


def test_the_table_of_verdicts_has_every_claim_with_both_studies_verdicts(folder: Path) -> None:
    _, body = tables.verdicts(folder)
    found = json.loads((folder / "verdicts.json").read_text())
    assert [row[:2] for row in body] == [(f"({v['claim']}) {v['statement']}", f"**{v['verdict']}**") for v in found]
    earlier = {row[0].split(")")[0].strip("("): row[3] for row in body}
    assert earlier["a"] == "reproduced" and earlier["e"] == "not testable here"
    assert earlier["d1"] == earlier["d2"] == "not reproduced (d)"
    assert {claim[0] for claim in earlier} == {claim[0] for claim in tables.read_first()}


def part(measure: str, number: str, side: int) -> dict[str, Any]:
    return {"text": "", "measure": measure, "number": number, "side": side}


def test_numbers_are_marked_by_what_they_do_to_the_claim() -> None:
    few = [part("ratio", "0.50", 1), part("ratio", "1.00", 0), part("ratio", "1.20", -1), part("KL", "-0.02", 1)]
    assert tables.decisive(few) == "ratio: 0.50, *1.00*, **1.20**; KL: -0.02"
    many = [part("bias", number, 1) for number in ("0.9", "0.07", "0.3", "0.5")]
    assert tables.decisive(many) == "bias: 0.07 to 0.9 in 4 cases, 0 against it"
    many[0]["side"] = -1
    assert tables.decisive(many) == "bias: 0.07 to 0.9 in 4 cases, **1** against it"


def test_the_tables_of_training_have_both_signs_of_a_comparison(folder: Path) -> None:
    found = {row[0]: row for row in tables.training(folder)["sorting, each at its own rate"][1]}
    signs = str.maketrans("+-", "-+")
    value, low, high = found["`vopd`"][5].replace("[", "").replace("]", "").replace(",", "").split()
    assert found["`opd`"][6].translate(signs) == f"{value} [{high}, {low}]"
    assert value.startswith("**-") and found["`opd`"][5] == found["`vopd`"][6] == ""


def test_the_pilot_s_table_marks_the_rate_of_the_study() -> None:
    _, body = tables.pilot([*made_up.pilot(), {**made_up.pilot()[0], "rate": 3e-3, "failed": "not finite"}])
    assert len(body) == sum(map(len, design.ESTIMATORS.values()))
    assert body[0] == ["main", "`opd`", "-", "**0.2500**", "0.3000", "0.3000", "crashed"]


def test_what_was_run_counts_the_records(folder: Path) -> None:
    rows = {row[0]: row[1:] for row in tables.what_was_run(folder)[1]}
    assert rows["seeds"] == ("12 (100 to 111)", "8 (100 to 107)", "8 (100 to 107)")
    assert rows["training runs"][1:] == ("32", "32") and set(rows["of them crashed"]) == {"0"}
    assert "12 seeds" in tables.headline(folder) and "2.0 hours with 2 runs" in tables.when_and_where(folder)
    assert tables.counts(folder).startswith("Of 14 claims: ")


def test_a_repeated_run_that_differs_is_not_counted(folder: Path, tmp_path: Path) -> None:
    assert tables.repeated(folder).startswith("6 runs, 2 of each setting, ") and "in 6 of them" in tables.repeated(
        folder
    )
    found = made_up.repeated()
    found["runs"][3]["log"] = False
    (tmp_path / "repeated.json").write_text(json.dumps(found))
    assert "in 5 of them" in tables.repeated(tmp_path)


# ---- figures -----------------------------------------------------------------------------------------------------


def test_every_figure_is_drawn_and_in_a_document(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **__: path.touch())
    figures.draw_all(folder, tmp_path, made_up.pilot())
    drawn = {path.name for path in tmp_path.glob("*.png")}
    pages = "".join((figures.FIGURES.parents[1] / name).read_text() for name in ("evidence.md", "evidence-details.md"))
    assert drawn == {name for name in drawn if f"images/evidence/{name}" in pages}
    assert drawn == {line.split("images/evidence/")[1].split(")")[0] for line in pages.splitlines() if line[:2] == "!["}


def test_a_crashed_run_is_drawn_where_it_began() -> None:
    records = [
        record if (record["estimator"], record["seed"]) != ("vopd", 100)
        else {key: record[key] for key in ("setting", "estimator", "rate", "seed")} | {"failed": "not finite"}
        for record in made_up.records()
    ]  # fmt: skip
    runs = Runs(records, made_up.study()["starts"], made_up.best_rates())
    steps, rows = curves_of(runs, "larger", "vopd")
    assert steps == list(made_up.SIZE.curve_steps) and len(rows) == len(runs.of("larger", OWN_RATE, "vopd")) == 8
    assert [row for row in rows if len(set(row)) == 1] == [[0.32] * len(steps)]

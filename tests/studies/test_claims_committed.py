"""The committed results of the claims study: what is said follows from what was measured, by the code that is here."""

from __future__ import annotations

import shutil
from pathlib import Path

from studies.claims import design, figures
from studies.claims.pilot import neighbours
from studies.claims.report import RESULTS, read_kept, write_report

RECORDS = ("runs.json", "study.json", "fixed.json", "cost.json")
OUTPUTS = ("comparisons.csv", "verdicts.json", "precision.json", "summary.txt")


def test_the_report_follows_from_the_records(tmp_path: Path) -> None:
    for name in RECORDS:
        shutil.copy(RESULTS / name, tmp_path / name)
    write_report(tmp_path)
    for name in OUTPUTS:
        assert (tmp_path / name).read_text() == (RESULTS / name).read_text(), name


def test_every_run_of_the_plan_is_there_at_the_rates_of_the_pilot() -> None:
    kept, pilot = read_kept(), design.committed_pilot()
    best = {setting: design.best_rates(pilot, setting) for setting in design.ESTIMATORS}
    assert kept.study["best_rates"] == best
    assert design.Size(**kept.study["size"]) == design.Size()
    for setting in design.ESTIMATORS:
        found = [(r["estimator"], r["rate"], r["seed"]) for r in kept.records if r["setting"] == setting]
        assert found == design.planned(setting, best[setting], design.Size())


def test_the_pilot_tried_the_neighbours_of_every_best_rate() -> None:
    pilot = design.committed_pilot()
    assert {record["seed"] for record in pilot} == {design.PILOT_SEED}
    for setting, names in design.ESTIMATORS.items():
        for name, best in design.best_rates(pilot, setting).items():
            tried = {r["rate"] for r in pilot if (r["setting"], r["estimator"]) == (setting, name)}
            assert neighbours(best) <= tried and name in names


def test_every_figure_of_the_documents_is_there() -> None:
    pages = "".join((figures.FIGURES.parents[1] / name).read_text() for name in ("evidence.md", "evidence-details.md"))
    named = {line.split("images/evidence/")[1].split(")")[0] for line in pages.splitlines() if line[:2] == "!["}
    assert named == {path.name for path in figures.FIGURES.glob("*.png")}

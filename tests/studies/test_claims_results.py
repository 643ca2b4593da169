"""The committed results of the claims study: what is said follows from what was measured, by the code that is here."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from studies.claims import design
from studies.claims.tables import COMMON, Compared, Results, compare_all, primary, secondary, write_comparisons
from studies.claims.verdicts import NOT, REPRODUCED, UNTESTABLE, Evidence, all_verdicts, gap_share, trains_better
from vopd.statistics import Difference

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "studies" / "claims" / "results"


def read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


@pytest.fixture(scope="module")
def results() -> Results:
    kept = read("runs.json")
    return Results(kept["runs"], kept["starts"], kept["best_rates"])


@pytest.fixture(scope="module")
def compared(results: Results) -> list[Compared]:
    return compare_all(results)


def test_the_verdicts_follow_from_the_runs(results: Results, compared: list[Compared]) -> None:
    found = [asdict(verdict) for verdict in all_verdicts(Evidence(results, compared, read("fixed.json"), None))]
    assert json.loads(json.dumps(found)) == read("verdicts.json")


def test_the_comparisons_follow_from_the_runs(compared: list[Compared], tmp_path: Path) -> None:
    write_comparisons(compared, tmp_path / "comparisons.csv")
    assert (tmp_path / "comparisons.csv").read_text() == (RESULTS / "comparisons.csv").read_text()


def test_no_run_is_missing_without_being_named(results: Results) -> None:
    study = read("study.json")
    assert study["runs"] == len(results.runs) and study["runs"] + len(study["missing"]) <= design.MOST_RUNS
    if not study["missing"]:
        for setting in ("main", "larger", "sorting"):
            names = (*design.MAIN, *design.CONTROLS) if setting == "main" else design.FEW
            for name in names:
                assert [run["seed"] for run in results.of(setting, name, design.COMMON_RATE)] == [0, 1, 2, 3, 4]


def test_the_document_says_the_verdicts_that_were_found() -> None:
    rows = {}
    for line in (ROOT / "docs" / "evidence.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 4 and cells[1].startswith("("):
            rows[cells[1].strip("()")] = cells
    expected = {entry["claim"]: entry["verdict"] for entry in [*read("verdicts.json"), read("timings.json")["verdict"]]}
    assert set(rows) == set(expected)
    for claim, verdict in expected.items():
        assert f"**{verdict}**" in rows[claim], claim


def run(estimator: str, seed: int, value: float, setting: str = "main") -> dict[str, Any]:
    return {
        "setting": setting, "estimator": estimator, "rate": design.COMMON_RATE, "seed": seed, "reverse_kl": value,
        "accuracy": 1 - value, "outcomes": "10",
    }  # fmt: skip


def test_the_share_of_a_gap_is_a_ratio_of_means_over_common_seeds() -> None:
    rows = [("opd", [0.3, 0.4]), ("vopd", [0.2, 0.35]), ("full_rkl", [0.1, 0.2, 9.0])]
    runs = [run(name, seed, value) for name, values in rows for seed, value in enumerate(values)]
    share = gap_share(Results(runs, {}, {}), "main", "opd", "vopd", "full_rkl")
    assert share is not None and share[0] == pytest.approx(0.15 / 0.4) and share[1] < share[0] < share[2]
    assert gap_share(Results(runs[:3], {}, {}), "main", "opd", "vopd", "full_rkl") is None


def entry(value: float, p: float, metric: str = "reverse_kl", place: tuple[str, str] = ("main", COMMON)) -> Compared:
    return Compared(*place, metric, "vopd", "opd", 5, Difference(value, value - 1, value + 1, p), None, p)


@pytest.mark.parametrize(
    ("value", "p", "metric", "better", "worse"),
    [
        (-0.1, 0.01, "reverse_kl", True, False),
        (0.1, 0.01, "reverse_kl", False, True),
        (0.1, 0.01, "accuracy", True, False),
        (-0.1, 0.2, "reverse_kl", False, False),
    ],
)
def test_better_is_nearer_or_more_accurate_and_significant(
    value: float, p: float, metric: str, better: bool, worse: bool
) -> None:
    found = entry(value, p, metric)
    assert (found.better, found.worse) == (better, worse)


def test_training_is_judged_at_both_rates() -> None:
    places = [("main", COMMON), ("main", "own best rate")]

    def verdict(*compared: Compared) -> str:
        return trains_better(Evidence(Results([], {}, {}), compared, {}, None)).verdict

    both = [entry(-0.1, 0.01, place=place) for place in places]
    assert verdict(*both) == REPRODUCED
    assert verdict(both[0]) == UNTESTABLE
    assert verdict(both[0], entry(-0.1, 0.3, place=places[1])) == NOT
    assert verdict(*both, entry(-0.1, 0.01, "accuracy", ("sorting", COMMON))) == NOT


def test_a_verdict_never_rests_on_a_secondary_comparison() -> None:
    assert not set(primary()) & set(secondary())
    assert len(set(primary())) == len(primary()) and len(set(secondary())) == len(secondary())

"""How many runs end worse than they started, and how many samples an accuracy takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from vopd.reporting.comparison import Comparison, Run
from vopd.reporting.comparison_report import seed_lines
from vopd.reporting.stability import stability_rows, target_accuracy
from vopd.reporting.tables import comparison_tables, comparison_text
from vopd.statistics import Interval

CURVE = [(0, 0.65), (2, 0.7), (4, 0.9)]


@pytest.fixture
def comparison(make_comparison: Callable[[int], Comparison]) -> Comparison:
    """Three seeds with accuracy curves and a batch of 8; a fourth run of vopd crashed."""
    found = make_comparison(3)
    runs = [
        replace(run, accuracy_curve=CURVE if run.estimator != "opd" else [(0, 0.65), (4, 0.6)]) for run in found.runs
    ]
    infinite = Interval(float("inf"), float("inf"), float("inf"))
    runs.append(Run("vopd", 3, "vopd-3", [False] * 20, infinite, [], 1.0))
    return replace(found, runs=runs, settings={"steps": 4, "batch": 8})


def cells(comparison: Comparison, name: str) -> list[str]:
    """Less accurate, farther, crashed, reached, samples, seconds: the estimator's row."""
    (row,) = (cells for label, *cells in stability_rows(comparison)[1] if label == name)
    return row


def test_counts_runs_that_end_worse_than_they_began(comparison: Comparison) -> None:
    assert cells(comparison, "opd")[:3] == ["3 of 3", "3 of 3", "0 of 3"]  # 12 right of 13 before
    assert cells(comparison, "vopd")[:3] == ["1 of 4", "1 of 4", "1 of 4"]
    assert cells(comparison, "full_rkl")[:2] == ["0 of 3", "0 of 3"]


def test_the_target_is_what_the_first_ends_with_unless_it_is_set(comparison: Comparison) -> None:
    assert target_accuracy(comparison) == 0.65  # the first ends with 0.6, below the start
    better = replace(comparison, runs=[run for run in comparison.runs if run.estimator == "full_rkl"])
    assert target_accuracy(better) == 0.9  # of the curve: those are the problems on which checkpoints have to reach it
    assert target_accuracy(replace(comparison, settings={"target_accuracy": 0.7})) == 0.7


def test_the_samples_needed_are_those_of_the_first_checkpoint_with_the_target(comparison: Comparison) -> None:
    # Step 2 of 4, 8 samples each; the seeds' runs took 30, 32 and 34 seconds, the last of vopd crashed.
    runs = [replace(run, seconds=30.0 + 2 * run.seed) for run in comparison.runs]
    found = replace(comparison, runs=runs, settings={**comparison.settings, "target_accuracy": 0.7})
    assert cells(found, "vopd")[3:] == ["3 of 4", "16", "16 s"]
    assert cells(found, "opd")[3:] == ["0 of 3", "-", "-"]
    spent = [replace(run, processor_seconds=10.0 + 2 * run.seed) for run in runs]
    assert cells(replace(found, runs=spent), "vopd")[3:] == ["3 of 4", "16", "6 s"]


def test_text_and_page_end_with_it_where_accuracy_was_measured_along_the_runs(comparison: Comparison) -> None:
    text, table = comparison_text(comparison), comparison_tables(comparison)[-1]
    assert "3 of 4" in text and "reached 65 %" in text and "crashed" in text
    assert table.title == "Stability and samples needed" and table.note in text
    unmeasured = replace(comparison, runs=[replace(run, accuracy_curve=[]) for run in comparison.runs])
    assert "Stability" not in comparison_text(unmeasured)


def test_curves_of_several_seeds_become_their_mean_and_range() -> None:
    curves = [("vopd", [(1, 1.0), (2, 2.0), (3, 9.0)]), ("vopd", [(1, 3.0), (2, 6.0)]), ("vopd", [])]
    (line,) = seed_lines(curves)
    assert (list(line.steps), list(line.values), list(line.band)) == ([1, 2], [2.0, 4.0], [(1.0, 3.0), (2.0, 6.0)])


def test_one_seed_has_no_band_and_rates_share_a_colour() -> None:
    first, second = seed_lines([("vopd 0.001", [(1, 1.0)]), ("vopd 0.01", [(1, 2.0)])])
    assert not first.band and first.colour == second.colour and (first.dashed, second.dashed) == (False, True)

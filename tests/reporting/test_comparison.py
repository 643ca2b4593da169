"""Summaries of a comparison, and its way to disk and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from messages import says
from vopd.errors import DataError
from vopd.reporting.comparison import Comparison, read_comparison, write_comparison

Make = Callable[[int], Comparison]


def test_comes_back_from_disk_as_it_was(make_comparison: Make, tmp_path: Path) -> None:
    comparison = make_comparison(2)
    write_comparison(comparison, tmp_path)
    assert read_comparison(tmp_path) == comparison


def test_a_file_of_before_processor_seconds_is_read(make_comparison: Make, tmp_path: Path) -> None:
    write_comparison(make_comparison(1), tmp_path)
    path = tmp_path / "comparison.json"
    raw = json.loads(path.read_text())
    for run in raw["runs"]:
        del run["processor_seconds"]
    path.write_text(json.dumps(raw))
    found = read_comparison(tmp_path)
    assert not found.by_processor and found.seconds(found.runs[0]) == 30.0


def test_broken_and_absent_files_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says(f"{tmp_path / 'comparison.json'} ... vopd demo ... vopd compare")):
        read_comparison(tmp_path)
    (tmp_path / "comparison.json").write_text('{"runs": []}')
    with pytest.raises(DataError, match="not a comparison"):
        read_comparison(tmp_path)


def test_order_of_estimators_and_seeds(make_comparison: Make) -> None:
    comparison = make_comparison(2)
    assert comparison.estimators == ["opd", "vopd", "full_rkl"]
    assert comparison.seeds == [0, 1]
    assert [run.seed for run in comparison.runs_of("vopd")] == [0, 1]


def test_means_over_seeds(make_comparison: Make) -> None:
    comparison = make_comparison(3)
    assert comparison.reverse_kl("vopd") == pytest.approx(0.31)
    score = comparison.score("vopd")
    assert score.value == pytest.approx(0.7)
    assert score.count == 20  # problems, not problems times seeds


def test_noise_is_relative_to_opd(make_comparison: Make) -> None:
    comparison = make_comparison(1)
    opd, *others = comparison.runs
    assert replace(comparison, runs=[*others, opd]).relative_noise() == {"full_rkl": 0.0, "vopd": 0.5, "opd": 1.0}
    assert replace(comparison, runs=others).relative_noise() == {"vopd": 1.0, "full_rkl": 0.0}
    unmeasured = replace(others[0], estimator="vopd_sparse")
    assert replace(comparison, runs=[others[0], unmeasured]).relative_noise() == {"vopd": 1.0}
    assert replace(comparison, start=replace(comparison.start, gradient_noise={})).relative_noise() == {}


def test_divergences_are_paired_by_seed(make_comparison: Make) -> None:
    gaps = make_comparison(3).reverse_kl_differences("vopd", "opd")
    assert gaps == pytest.approx([-0.1] * 3)  # the seeds' own levels cancel


def test_only_common_seeds_are_paired(make_comparison: Make) -> None:
    comparison = make_comparison(2)
    kept = [run for run in comparison.runs if not (run.estimator == "vopd" and run.seed == 0)]
    assert replace(comparison, runs=kept).reverse_kl_differences("vopd", "opd") == pytest.approx([-0.1])
    alone = [run for run in kept if not (run.estimator == "opd" and run.seed == 1)]
    with pytest.raises(DataError, match="no seed in common"):
        replace(comparison, runs=alone).reverse_kl_differences("vopd", "opd")


def test_accuracies_are_paired_by_problem(make_comparison: Make) -> None:
    gap = make_comparison(2).accuracy_difference("full_rkl", "opd")
    assert gap.value == pytest.approx(0.2)
    assert gap.low >= 0  # no problem was lost, so no draw of problems can show a loss

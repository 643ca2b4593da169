"""Tables say the surest things first, and say how many seeds they rest on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from messages import told
from vopd.reporting.comparison import Comparison
from vopd.reporting.tables import comparison_tables, comparison_text, format_table

Make = Callable[[int], Comparison]


def test_columns_are_aligned() -> None:
    table = format_table(["", "value"], [["a", "1.00"], ["longer", "10.00"]])
    assert table.splitlines() == ["        value", "-------------", "a        1.00", "longer  10.00"]


def test_order_of_the_sections(make_comparison: Make) -> None:
    text = comparison_text(make_comparison(1))
    places = [text.index(word) for word in ("Held-out reverse KL and gradient noise", "Accuracy", "Training time")]
    assert places == sorted(places)


def test_a_single_seed_is_labelled_in_every_section(make_comparison: Make) -> None:
    text = comparison_text(make_comparison(1))
    assert text.count("(single seed)") == 3
    assert "Paired differences" not in text


def test_numbers_of_a_single_seed(make_comparison: Make) -> None:
    lines = comparison_text(make_comparison(1)).splitlines()
    rows = [line.split() for line in lines if line.startswith("vopd")]
    assert rows[0] == ["vopd", "0.300", "[0.280,", "0.320]", "0.500"]
    assert rows[1][:3] == ["vopd", "70.0", "%"]
    assert rows[2] == ["vopd", "30", "s"]


def test_several_seeds_give_means_and_paired_differences(make_comparison: Make) -> None:
    text = comparison_text(make_comparison(3))
    assert "single seed" not in text
    assert told("opd ... means of 3 seeds", text)
    row = next(line for line in text.splitlines() if line.startswith("vopd") and "of 3" in line)
    assert "-0.100 (-0.100 to -0.100)" in row
    assert "3 of 3" in row
    assert "+10.0 points" in row


def test_without_noise_there_is_no_column_for_it(make_comparison: Make) -> None:
    comparison = make_comparison(1)
    comparison.start.gradient_noise.clear()
    text = comparison_text(comparison)
    rows = [line.split() for line in text.splitlines() if line.startswith("opd")]
    assert rows[0] == ["opd", "0.400", "[0.380,", "0.420]"] and "noise" not in text.lower()


@pytest.mark.parametrize(
    ("jobs", "measured", "columns"),
    [
        (2, True, ["processor seconds"]),  # wall time of runs that shared the machine is not compared
        (1, True, ["processor seconds", "wall time"]),
        (1, False, ["wall time"]),
        (None, False, ["wall time"]),  # a file of before these fields
        (2, False, ["wall time"]),  # one run crashed before its first step
    ],
)
def test_times_are_of_the_processor_where_runs_shared_it(
    make_comparison: Make, jobs: int | None, measured: bool, columns: list[str]
) -> None:
    comparison = make_comparison(1)
    runs = [replace(run, processor_seconds=12.0 if measured else None) for run in comparison.runs]
    settings = {"steps": 4} if jobs is None else {"steps": 4, "jobs": jobs}
    found = replace(comparison, runs=runs, settings=settings)
    (table,) = (table for table in comparison_tables(found) if table.title.startswith("Training time"))
    seconds = {"processor seconds": "12 s", "wall time": "30 s"}
    assert list(table.headers) == ["", *columns]
    assert list(table.rows[0]) == ["opd", *(seconds[column] for column in columns)]
    assert told("shared the processor ... wall time", table.note) == (jobs != 1 and not measured)


def test_an_interval_without_width_is_explained(make_comparison: Make) -> None:
    comparison = make_comparison(1)
    assert "width 0" in comparison_text(comparison)  # of the teacher, which is always right
    right = replace(comparison.start, teacher_outcomes=[True] * 19 + [False])
    assert "width 0" not in comparison_text(replace(comparison, start=right))

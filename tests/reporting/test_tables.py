"""Tables say the surest things first, and say how many seeds they rest on."""

from __future__ import annotations

from collections.abc import Callable

from messages import told
from vopd.reporting.comparison import Comparison
from vopd.reporting.tables import comparison_text, format_table

Make = Callable[[int], Comparison]


def test_columns_are_aligned() -> None:
    table = format_table(["", "value"], [["a", "1.00"], ["longer", "10.00"]])
    assert table.splitlines() == ["        value", "-------------", "a        1.00", "longer  10.00"]


def test_order_of_the_sections(make_comparison: Make) -> None:
    text = comparison_text(make_comparison(1))
    places = [text.index(word) for word in ("Held-out reverse KL and gradient noise", "Accuracy", "Time")]
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


def test_without_noise_the_column_is_empty(make_comparison: Make) -> None:
    comparison = make_comparison(1)
    comparison.start.gradient_noise.clear()
    rows = [line.split() for line in comparison_text(comparison).splitlines() if line.startswith("opd")]
    assert rows[0][-1] == "-"

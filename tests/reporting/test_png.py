"""Sheets of figures are drawn from what was measured, without a display and without touching pyplot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vopd.errors import MissingExtraError
from vopd.estimators import ESTIMATORS
from vopd.reporting import benchmark_curves, comparison_report, variance_report
from vopd.reporting.benchmark_curves import draw_accuracy
from vopd.reporting.colours import colour_of
from vopd.reporting.comparison import Comparison
from vopd.reporting.comparison_report import draw_comparison
from vopd.reporting.figures import Curves, Figure, Line, Row, Rows
from vopd.reporting.png import panels, write_png
from vopd.reporting.variance_report import draw_variance

Make = Callable[[int], Comparison]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The matplotlib figure of every sheet that is written."""
    sheets: list[Any] = []

    def keep(figures: list[Figure], path: Any, title: str = "") -> None:
        sheets.append(panels(figures, title))

    for module in (benchmark_curves, comparison_report, variance_report):
        monkeypatch.setattr(module, "write_png", keep)
    return sheets


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_comparison_becomes_one_png(make_comparison: Make, tmp_path: Path, seeds: int) -> None:
    path = tmp_path / "figure.png"
    draw_comparison(make_comparison(seeds), tmp_path, path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_panels_of_a_comparison_show_the_numbers(make_comparison: Make, tmp_path: Path, drawn: list[Any]) -> None:
    draw_comparison(make_comparison(1), tmp_path, tmp_path / "figure.png")
    held_out, noise, training, accuracy = drawn[0].axes
    ends = {"opd": 0.4, "vopd": 0.3, "full_rkl": 0.2}
    curves = {line.get_label(): list(line.get_ydata()) for line in held_out.lines}
    assert {name: curves[name] for name in ends} == {name: [0.35, 0.3, end] for name, end in ends.items()}
    assert [0.35, 0.35] in curves.values()  # the student before
    assert [bar.get_width() for bar in noise.patches] == [1.0, 0.5, 0.0]
    assert {line.get_label(): list(line.get_ydata()) for line in training.lines} == {
        name: pytest.approx([end] * 4) for name, end in ends.items()
    }
    points = [line.get_xdata()[0] for line in accuracy.lines if line.get_marker() == "o"]
    assert points == pytest.approx([60, 70, 80])
    assert {"60.0 %", "70.0 %", "80.0 %", "student before", "teacher"} <= {text.get_text() for text in accuracy.texts}
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == list(ends)
    assert "(single seed)" in drawn[0].get_suptitle()


def test_the_panels_of_a_variance_show_the_numbers(tmp_path: Path, drawn: list[Any]) -> None:
    part = {"value": 2.0, "low": 1.0, "high": 4.0}
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0}
    bins = [{"low": low, "high": low + 1, "none": 2.0 + low, "value": 1.0, "optimal": 0.5} for low in (0, 1)]
    results = {
        "context": {**part, "value": 3.0}, "profile": {"by_position": bins, "by_entropy": bins},
        "estimators": {"vopd": {"token": part}, "full_rkl": {"token": nothing}},
    }  # fmt: skip
    draw_variance(results, tmp_path / "variance.png")
    token, position, entropy = drawn[0].axes
    assert token.get_xscale() == "log"
    drawn_values = [list(line.get_xdata()) for line in token.lines]
    assert drawn_values == [[1.0, 4.0], [2.0], [3.0, 3.0]]  # interval, value, context part; what is exact has no place
    assert {"2", "0, exact", "context"} <= {text.get_text() for text in token.texts}
    for axes, name in ((position, "position in the completion"), (entropy, "entropy of the student, nats")):
        curves = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
        assert curves == {"no baseline": [2.0, 3.0], "value": [1.0, 1.0], "optimal": [0.5, 0.5]}
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0 - 1", "1 - 2"]
        assert axes.get_xlabel() == name


def test_two_equal_models_have_no_variance_to_draw(tmp_path: Path, drawn: list[Any]) -> None:
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0}
    profile = {"by_position": [], "by_entropy": []}
    draw_variance({"context": nothing, "profile": profile, "estimators": {"opd": {"token": nothing}}}, tmp_path)
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["0, exact"]


def test_accuracy_stands_against_the_checkpoints_with_its_intervals(tmp_path: Path, drawn: list[Any]) -> None:
    score = {"value": 0.5, "low": 0.4, "high": 0.6, "count": 9}
    rows = [
        {"checkpoint": checkpoint, "benchmark": "sums", "problems": 9, "avg_at_k": score} for checkpoint in ("a", "b")
    ]
    draw_accuracy({"results": rows}, tmp_path / "accuracy.png")
    (axes,) = drawn[0].axes
    curve, *intervals = (list(line.get_ydata()) for line in axes.lines)
    assert curve == [50, 50] and intervals == [[40, 60], [40, 60]]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["a", "b"]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["sums, n = 9"]


def test_notes_stand_below_and_one_legend_serves_all_panels() -> None:
    curves = Curves("a", "A", "nats", [Line("one", [1, 2], [0.0, 1.0], "#000000")], "What it is.")
    stacked = Rows("b", "B", "seconds", [Row("run", "3 s", [("x", 1.0, "#111111"), ("y", 2.0, "#222222")])])
    sheet = panels([curves, curves, stacked], "Title")
    assert sheet.axes[0].get_xlabel() == "optimizer step\nWhat it is." and sheet.axes[0].get_ylabel() == "nats"
    assert [text.get_text() for text in sheet.legends[0].get_texts()] == ["one", "x", "y"]
    assert [bar.get_x() for bar in sheet.axes[2].patches] == [0.0, 1.0]


def test_the_backend_of_the_caller_stays(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    before = matplotlib.rcParams["backend"], json.dumps(matplotlib.rcParams["axes.grid"])
    write_png([Curves("a", "A", "", [Line("one", [1], [1.0], "#000000")])], tmp_path / "a.png")
    assert (matplotlib.rcParams["backend"], json.dumps(matplotlib.rcParams["axes.grid"])) == before


def test_every_estimator_has_its_own_colour() -> None:
    colours = {colour_of(f"{name} 0.001") for name in ESTIMATORS}
    assert len(colours) == len(ESTIMATORS)
    assert colour_of("another") not in colours
    assert colour_of("another 0.001", {"another": "#123456"}) == "#123456"


def test_without_matplotlib_the_extra_is_named(
    make_comparison: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr("vopd.errors.importlib.import_module", absent)
    with pytest.raises(MissingExtraError, match="pip install matplotlib"):
        draw_comparison(make_comparison(1), tmp_path, tmp_path / "figure.png")

"""The figure is drawn from what was measured, without a display."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vopd.errors import MissingExtraError
from vopd.estimators import ESTIMATORS
from vopd.reporting.comparison import Comparison
from vopd.reporting.plots import COLOURS, colour_of, plot_comparison

Make = Callable[[int], Comparison]


@pytest.mark.parametrize("seeds", [1, 3])
def test_writes_a_png(make_comparison: Make, tmp_path: Path, seeds: int) -> None:
    path = tmp_path / "figure.png"
    plot_comparison(make_comparison(seeds), tmp_path, path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_panels_show_the_numbers(make_comparison: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import pyplot

    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    plot_comparison(make_comparison(1), tmp_path, tmp_path / "figure.png")
    held_out, noise, training, accuracy = pyplot.gcf().axes
    assert [list(line.get_ydata()) for line in held_out.lines[:3]] == [
        [0.35, 0.3, 0.4],
        [0.35, 0.3, 0.3],
        [0.35, 0.3, 0.2],
    ]
    assert [bar.get_width() for bar in noise.patches] == [1.0, 0.5, 0.0]
    assert [list(line.get_ydata()) for line in training.lines] == [
        pytest.approx([value] * 4) for value in (0.4, 0.3, 0.2)
    ]
    points = [line.get_xdata()[0] for line in accuracy.lines if line.get_marker() == "o"]
    assert points == pytest.approx([60, 70, 80])
    monkeypatch.undo()
    pyplot.close("all")


def test_every_estimator_has_its_own_colour() -> None:
    assert set(COLOURS) == set(ESTIMATORS)
    assert len(set(COLOURS.values())) == len(COLOURS)
    assert colour_of("another") not in COLOURS.values()


def test_without_matplotlib_the_extra_is_named(
    make_comparison: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return real(name, *args, **kwargs)

    monkeypatch.setattr("vopd.errors.importlib.import_module", without)
    with pytest.raises(MissingExtraError, match=r"vopd\[report\]"):
        plot_comparison(make_comparison(1), tmp_path, tmp_path / "figure.png")

"""A small comparison with known numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vopd.reporting.comparison import Comparison, Run, Start
from vopd.statistics import Interval


@pytest.fixture(autouse=True)
def figures(undrawn: None) -> None:
    """Reports come without PNG files."""


END = {"opd": 0.40, "vopd": 0.30, "full_rkl": 0.20}
RIGHT = {"opd": 12, "vopd": 14, "full_rkl": 16}


@pytest.fixture
def make_comparison(tmp_path: Path) -> Callable[[int], Comparison]:
    """Of 20 problems and three estimators; the end of seed s is 0.01 s higher. Metrics files lie in tmp_path."""

    def make(seeds: int) -> Comparison:
        runs = []
        for seed in range(seeds):
            for name, end in END.items():
                value = end + 0.01 * seed
                folder = tmp_path / f"{name}-{seed}"
                folder.mkdir()
                lines = [json.dumps({"step": step, "sampled_reverse_kl": value}) + "\n" for step in range(1, 5)]
                (folder / "metrics.jsonl").write_text("".join(lines))
                outcomes = [index < RIGHT[name] for index in range(20)]
                curve = [(0, 0.35), (2, 0.3), (4, value)]
                interval = Interval(value, value - 0.02, value + 0.02)
                runs.append(Run(name, seed, folder.name, outcomes, interval, curve, 30.0 + seed))
        noise = {"opd": 4.0, "vopd": 2.0, "full_rkl": 0.0}
        start = Start([True] * 13 + [False] * 7, [True] * 20, Interval(0.35, 0.3, 0.4), noise)
        return Comparison({"steps": 4}, start, runs)

    return make

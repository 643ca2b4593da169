from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vopd import cli


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`vopd demo` with an experiment that only leaves a file where it was told to write."""
    experiment = ModuleType("vopd.experiments.demo")

    def run_demo(folder: Path, **options: Any) -> None:
        folder.mkdir(parents=True)
        (folder / "report.html").write_text(json.dumps(options))

    experiment.run_demo = run_demo  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vopd.experiments.demo", experiment)
    return lambda *more: cli.main(["demo", "--output_dir", str(tmp_path / "runs"), *more])


def test_every_demo_gets_a_folder_of_its_own(demo: Callable[..., int], tmp_path: Path) -> None:
    assert [demo(), demo(), demo()] == [0, 0, 0]
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*/*")) == [
        "runs/demo-2/report.html", "runs/demo-3/report.html", "runs/demo/report.html",
    ]  # fmt: skip


def test_a_named_demo_overwrites_nothing(demo: Callable[..., int], tmp_path: Path) -> None:
    assert demo("--run_name", "mine") == 0
    (tmp_path / "runs" / "mine" / "report.html").write_text("precious")
    assert demo("--run_name", "mine") == 2
    assert (tmp_path / "runs" / "mine" / "report.html").read_text() == "precious"


def test_options_reach_the_experiment_and_what_is_not_given_stays_its_own(
    demo: Callable[..., int], tmp_path: Path
) -> None:
    assert demo("--run_name", "mine", "--seeds", "3", "--estimators", "opd,vopd") == 0
    passed = json.loads((tmp_path / "runs" / "mine" / "report.html").read_text())
    assert passed == {"estimators": ["opd", "vopd"], "seeds": 3, "processes": 2}

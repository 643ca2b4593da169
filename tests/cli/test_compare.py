from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from messages import told
from vopd import cli
from vopd.experiments import compare as comparing
from vopd.experiments.grid import measured_of
from vopd.reporting.comparison import read_comparison
from vopd.reporting.run_files import read_metrics


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What would be run, instead of running it."""
    calls: list[dict[str, Any]] = []

    def compare(folder: Path, runs: Any, measurement: Any, **options: Any) -> None:
        calls.append({"folder": folder, "runs": runs, "measurement": measurement, **options})

    monkeypatch.setattr(comparing, "compare", compare)
    return calls


def recipe(folder: Path, **more: Any) -> Path:
    values = {"model": "s", "teacher_model": "t", "dataset": str(folder / "p.jsonl"), "output_dir": str(folder), **more}
    for name in ("p.jsonl", "h.jsonl"):
        (folder / name).touch()
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(values))
    return path


def test_without_models_it_is_the_embedded_pair(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    arguments = ["compare", "--output_dir", str(tmp_path), "--max_steps", "8", "--problems", "5", "--seed", "3,4"]
    assert cli.main([*arguments, "--estimator", "opd,vopd_top_k", "--learning_rate", "1e-4,1e-3", "--jobs", "2"]) == 0
    (call,) = asked
    assert call["folder"] == tmp_path / "compare" and call["processes"] == 2 and call["offline"]
    assert len(call["runs"]) == 8 and len({run.directory for run in call["runs"]}) == 8
    first, second = call["runs"][:2]
    assert (first.estimator.name, first.seed, first.learning_rate) == ("opd", 3, 1e-4)
    assert "loss_top_k" not in first.options and second.options["loss_top_k"] == 20
    assert first.options["max_steps"] == 8 and first.options["save_steps"] == 2
    prompts = (tmp_path / "compare" / "train-seed4.jsonl").read_text().splitlines()
    assert len(prompts) == 8 * 16 and len((tmp_path / "compare" / "held_out.jsonl").read_text().splitlines()) == 5


def test_a_recipe_with_lists_is_a_grid(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    path = recipe(tmp_path, estimator=["opd", "vopd"], seed=[0, 1], learning_rate=[1e-5], max_completion_length=64)
    held_out = str(tmp_path / "h.jsonl")
    assert cli.main(["compare", "--config", str(path), "--held_out", held_out, "--run_name", "mine"]) == 0
    (call,) = asked
    varied = [(run.estimator.name, run.seed) for run in call["runs"]]
    assert varied == [("opd", 0), ("vopd", 0), ("opd", 1), ("vopd", 1)]
    assert call["runs"][0].options == {
        "model": "s", "teacher_model": "t", "dataset": str(tmp_path / "p.jsonl"), "max_completion_length": 64,
    }  # fmt: skip
    assert call["measurement"].max_new_tokens == 64 and call["measurement"].held_out == held_out
    assert call["folder"] == tmp_path / "mine" and not call["offline"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--estimator", "popd"], "'popd'"),
        (["--estimator", "opd,opd"], "estimator ... once"),
        (["--seed", "zero,one"], "seed ... int"),
        (["--jobs", "0"], "jobs ... 1"),
        (["--problems", "0"], "1"),
        (["--model", "s"], "--teacher_model ... --dataset"),
        (["--model", "s", "--teacher_model", "t", "--dataset", "reasoning_gym:chain_sum"], "--held_out"),
        (["--estimators", "opd"], "estimators ... 'estimator'"),
    ],
)
def test_impossible_comparisons_are_refused_at_once(
    arguments: list[str], message: str, asked: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", "--output_dir", str(tmp_path), *arguments]) == 2
    assert told(message, capsys.readouterr().err) and not asked


def test_an_estimator_with_a_k_needs_one_in_a_recipe(
    asked: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, estimator=["vopd_top_k"], held_out=str(tmp_path / "h.jsonl"))
    assert cli.main(["compare", "--config", str(path)]) == 2
    assert told("vopd_top_k ... loss_top_k", capsys.readouterr().err) and not asked


@pytest.mark.slow
def test_runs_measures_reports_and_does_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an estimator of a user's own file, which every process imports anew."""
    monkeypatch.chdir(Path(__file__).parents[2] / "examples")
    monkeypatch.setattr("sys.path", list(sys.path))
    arguments = ["compare", "--output_dir", str(tmp_path), "--max_steps", "4", "--problems", "6", "--jobs", "2"]
    arguments += ["--estimator", "custom_estimator:CLIPPED", "--seed", "0,1", "--curve_problems", "3"]
    assert cli.main(arguments) == 0
    folder = tmp_path / "compare"
    comparison = read_comparison(folder)
    assert [run.seed for run in comparison.runs] == [0, 1] and comparison.settings["batch"] == 16
    for run in comparison.runs:
        assert len(run.outcomes) == 6 and [step for step, _ in run.accuracy_curve] == [0, 1, 2, 3, 4]
        assert len(read_metrics(folder / run.directory)) == 4
        assert (folder / run.directory / "model" / "model.safetensors").is_file()
    assert {run.curve[0] for run in comparison.runs} == {(0, measured_of(folder / "start")["curve_point"][0])}
    assert comparison.curve_note == "On the first 3 of the 6 held-out problems."
    text = (folder / "comparison.txt").read_text()
    assert comparison.curve_note in text and comparison.curve_note in (folder / "report.html").read_text()
    assert "Stability and samples needed" in text and "processor seconds" in text and "wall time" not in text
    assert all(run.processor_seconds and run.processor_seconds > 0 for run in comparison.runs)
    page = (folder / "report.html").read_text()
    assert (
        "Stability and samples needed" in page and "opd_clipped" in page and comparison.colours["opd_clipped"] in page
    )
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("measured.json")}
    capsys.readouterr()
    assert cli.main(arguments) == 0
    assert told("2 runs ... 2 already finished", capsys.readouterr().out)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("measured.json")}
    assert cli.main([*arguments, "--jobs", "1"]) == 0
    assert "wall time" not in (folder / "comparison.txt").read_text()  # the runs had shared the machine
    assert cli.main([*arguments, "--problems", "7"]) == 2  # measured otherwise

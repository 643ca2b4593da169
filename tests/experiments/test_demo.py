"""The demo at its smallest: real runs, and the files that it promises."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from messages import says, told
from vopd.errors import ConfigurationError, MissingExtraError, VOPDError
from vopd.estimators.policy_gradient import OPD, VOPD, VOPD_OPTIMAL
from vopd.estimators.rao_blackwell import RAO_BLACKWELL_TEACHER_TOP_K
from vopd.experiments import demo, grid, one_run
from vopd.experiments.compare import Grid
from vopd.experiments.demo import run_demo
from vopd.experiments.jobs import Job
from vopd.reporting.comparison import Comparison, read_comparison
from vopd.reporting.run_files import read_metrics

SMALL: dict[str, Any] = {"estimators": ("opd", "rao_blackwell_teacher_top_k"), "steps": 5, "problems": 6}


def run_here(jobs: Sequence[Job], processes: int, *, finished: Callable[[Job, float], None], **more: Any) -> None:
    """In place of `run_jobs`: one after the other and without the imports of a process of its own for each."""
    for job in jobs:
        assert one_run.main(job.command[1:]) == 0
        finished(job, 1.0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison, str]:
    folder = tmp_path_factory.mktemp("demo")
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "run_jobs", run_here)
        patch.setattr("vopd.reporting.report.write_png", lambda figures, path: None)
        comparison = run_demo(folder, **SMALL, say=lines.append)
    return folder, comparison, "\n".join(lines)


@pytest.mark.slow
def test_leaves_ordinary_run_directories_and_a_comparison(finished: tuple[Path, Comparison, str]) -> None:
    folder, comparison, _ = finished
    assert read_comparison(folder) == comparison
    for name in SMALL["estimators"]:
        for file in ("resolved_config.yaml", "metrics.jsonl", "samples.jsonl", "model/model.safetensors"):
            assert (folder / name / file).is_file()
        assert [record["step"] for record in read_metrics(folder / name)] == [1, 2, 3, 4, 5]
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "report.html").read_text()
    assert all(f"<h3>{name}</h3>" in page for name in ("student before", "teacher", *SMALL["estimators"]))


@pytest.mark.slow
def test_runs_share_start_and_first_batch(finished: tuple[Path, Comparison, str]) -> None:
    """Same student, same seed, same prompts: the first rollout is the same whatever the estimator."""
    folder, comparison, _ = finished
    first = [read_metrics(folder / run.directory)[0] for run in comparison.runs]
    assert first[0]["completion_length"] == first[1]["completion_length"]
    assert first[0]["sampled_reverse_kl"] == pytest.approx(first[1]["sampled_reverse_kl"], rel=1e-4)
    assert [run.curve[0] for run in comparison.runs] == [(0, comparison.start.reverse_kl.value)] * 2
    assert [step for step, _ in comparison.runs[0].curve] == [0, 1, 2, 3, 4, 5]


@pytest.mark.slow
def test_noise_is_measured_and_far_smaller_with_rao_blackwell(finished: tuple[Path, Comparison, str]) -> None:
    noise = finished[1].start.gradient_noise
    assert 0 < noise["rao_blackwell_teacher_top_k"] < 0.3 * noise["opd"]


@pytest.mark.slow
def test_says_its_progress_and_its_result(finished: tuple[Path, Comparison, str]) -> None:
    said = finished[2]
    assert said.startswith("2 runs of 5 steps")
    assert told("opd: done ... processor seconds", said)
    assert "(single seed)" in said
    assert said.index("reverse KL") < said.index("Accuracy") < said.index("Training time")


@pytest.mark.slow
def test_held_out_problems_are_not_trained_on(finished: tuple[Path, Comparison, str]) -> None:
    folder = finished[0]
    train, held_out = (
        {json.loads(line)["prompt"] for line in (folder / name).read_text().splitlines()}
        for name in ("train-seed0.jsonl", "held_out.jsonl")
    )
    assert len(train) == 5 * 16
    assert not train & held_out


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"estimators": ("opd", "popd")}, "'popd'"),
        ({"estimators": ()}, "one estimator"),
        ({"seeds": 0}, "seeds ... 1"),
        ({"processes": 0}, "processes ... 1"),
        ({"steps": 4}, "steps ... 5"),
        ({"problems": 3}, "problems ... 4"),
    ],
)
def test_impossible_demos_are_refused_at_once(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=says(message)):
        run_demo(tmp_path / "demo", **{**SMALL, **changed})
    assert not (tmp_path / "demo").exists()


def test_missing_matplotlib_is_found_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(module: str, extra: str) -> None:
        raise MissingExtraError(f"{module} is needed; install it with pip install -e '.[{extra}]'")

    monkeypatch.setattr(demo, "require", absent)
    with pytest.raises(MissingExtraError, match=r"\.\[report\]"):
        run_demo(tmp_path / "demo", **SMALL)
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
def test_a_failed_run_ends_the_demo_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, plan: Any = demo.demo_runs) -> Any:
        runs, measurement = plan(*arguments)
        return [replace(run, options={**run.options, "dataset": "gone.jsonl"}) for run in runs], measurement

    monkeypatch.setattr(demo, "demo_runs", broken)
    (tmp_path / "demo").mkdir()
    grid.write_measured(tmp_path / "demo" / grid.START, {})  # so that nothing runs but what fails
    with pytest.raises(VOPDError, match=says("failed ... no file 'gone.jsonl' ... opd.log")) as caught:
        run_demo(tmp_path / "demo", **{**SMALL, "estimators": ("opd",)}, say=lambda line: None)
    assert caught.value.exit_code == 3 and (tmp_path / "demo" / "logs" / "opd.log").is_file()


def test_seeds_have_directories_and_prompts_of_their_own(tmp_path: Path) -> None:
    grid = Grid((OPD, VOPD), range(2), (1e-3,))
    runs, _ = demo.demo_runs(grid, tmp_path, steps=10, problems=10)
    assert [run.directory for run in runs] == ["opd-seed0", "vopd-seed0", "opd-seed1", "vopd-seed1"]
    for run in runs:
        assert run.options["dataset"] == str(tmp_path / f"train-seed{run.seed}.jsonl")
    single = Grid((OPD, VOPD), [0], (1e-3,))
    assert [run.directory for run in demo.demo_runs(single, tmp_path, 10, 10)[0]] == ["opd", "vopd"]


def test_the_numbers_of_the_demo_are_these(tmp_path: Path) -> None:
    """They are recorded in the README and in benchmarks/results."""
    grid = Grid((OPD, VOPD_OPTIMAL, RAO_BLACKWELL_TEACHER_TOP_K), [0], (3e-4,))
    runs, measurement = demo.demo_runs(grid, tmp_path, steps=300, problems=600)
    expected = {
        "max_steps": 300, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "warmup_steps": 20,
        "lr_scheduler_type": "linear", "save_steps": 60, "metrics_every": 10, "use_cpu": True,
    }  # fmt: skip
    assert runs[0].options.items() >= expected.items()
    assert "loss_top_k" not in runs[0].options and runs[2].options["loss_top_k"] == 20
    assert (measurement.problems, measurement.curve_problems) == (600, 200)
    assert (measurement.noise_contexts, measurement.noise_resamples, measurement.accuracy_curve) == (64, 32, False)
    assert measurement.noise_estimators == ["opd", "vopd_optimal", "rao_blackwell_teacher_top_k"]

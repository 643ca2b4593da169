"""examples/custom_estimator.py, an estimator outside the package, wherever an estimator is named."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import vopd
from vopd import VOPDConfig, cli
from vopd.errors import Faults
from vopd.estimators import Estimator, find_estimator
from vopd.experiments.compare import Grid, recipe_runs
from vopd.experiments.grid import prepare
from vopd.experiments.measure import Measurement
from vopd.models import load_model
from vopd.reporting.report import write_report
from vopd.run.plan import read_plan

EXAMPLES = Path(__file__).parents[2] / "examples"
NAME = "custom_estimator:CLIPPED"
Train = Callable[..., int]


@pytest.fixture(autouse=True)
def in_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user who starts the command beside the file."""
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr("sys.path", list(sys.path))


@pytest.fixture
def clipped() -> Estimator:
    return find_estimator(NAME)


def test_it_trains_resumes_to_the_same_weights_and_is_in_the_report(train: Train, run: Path) -> None:
    assert train("--estimator", NAME, "--lr_scheduler_type", "constant") == 0
    assert yaml.safe_load((run / "resolved_config.yaml").read_text())["estimator"] == NAME
    assert NAME in (run / "report.html").read_text()
    assert "| estimator | opd_clipped |" in (run / "model" / "README.md").read_text()
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert samples and max(abs(value) for sample in samples for value in sample["advantages"]) <= 2

    again = ["--estimator", NAME, "--lr_scheduler_type", "constant", "--save_steps", "1", "--max_steps", "1"]
    assert train(*again, name="halves") == 0
    settings = str(run.parent / "halves" / "resolved_config.yaml")
    assert cli.main(["train", "--config", settings, "--max_steps", "2", "--resume"]) == 0
    whole, halves = (load_model(folder / "model").state_dict() for folder in (run, run.parent / "halves"))
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_a_run_without_a_name_is_called_by_that_of_its_estimator() -> None:
    plan = read_plan(
        "train", "", ["--model", "s", "--teacher_model", "t", "--dataset", "p.jsonl", "--estimator", NAME], Faults()
    )
    assert plan.folder.name == "s-opd-clipped"


def test_the_object_and_its_name_are_the_same_in_a_configuration(tmp_path: Path, clipped: Estimator) -> None:
    by_name, by_object = (VOPDConfig(output_dir=str(tmp_path), estimator=one, use_cpu=True) for one in (NAME, clipped))
    assert by_name.chosen_estimator is by_object.chosen_estimator is clipped
    assert by_name.to_dict()["estimator"] == by_object.to_dict()["estimator"] == NAME
    torch.save(by_object, tmp_path / "training_args.bin")
    assert torch.load(tmp_path / "training_args.bin", weights_only=False).chosen_estimator is clipped


def test_a_copy_of_a_configuration_has_all_and_shares_nothing(tmp_path: Path, clipped: Estimator) -> None:
    config = VOPDConfig(output_dir=str(tmp_path), estimator=clipped, use_cpu=True, generation_kwargs={}, hub_token="t")
    copied = copy.deepcopy(config)
    copied.generation_kwargs["seed"] = 1
    assert config.generation_kwargs == {} and copied.hub_token == "t"


def test_two_of_one_name_are_no_comparison(clipped: Estimator) -> None:
    with pytest.raises(vopd.errors.ConfigurationError, match="2 estimators are called 'opd_clipped'"):
        Grid([clipped, dataclasses.replace(clipped, description="another")], [0], [1e-5])


def test_its_loss_is_that_of_clipped_rewards(clipped: Estimator) -> None:
    logits, teacher = (4 * torch.randn(2, 64, 9, dtype=torch.float64)).unbind()
    logits, ids = logits.requires_grad_(), torch.arange(64) % 9
    found = vopd.distillation_loss(logits, teacher, ids, estimator=clipped)
    logprobs, target = (rows.log_softmax(-1).gather(-1, ids[:, None])[:, 0] for rows in (logits, teacher))
    rewards = (target - logprobs).detach()
    expected = -(rewards.clamp(-2, 2) * logprobs).mean()
    assert (rewards.abs() > 2).any()
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (found.loss, expected)))


def test_variance_measures_it_and_its_bias(
    tiny_student_dir: Path, tiny_teacher_dir: Path, prompts: Path, tmp_path: Path, clipped: Estimator
) -> None:
    given = {
        "model": tiny_student_dir, "teacher_model": tiny_teacher_dir, "dataset": prompts, "output_dir": tmp_path,
        "run_name": "noise", "contexts": 3, "resamples": 64, "max_completion_length": 6, "device": "cpu",
        "estimators": f"opd,{NAME}",
    }  # fmt: skip
    assert cli.main(["variance", *(text for name, value in given.items() for text in (f"--{name}", str(value)))]) == 0
    results = json.loads((tmp_path / "noise" / "results.json").read_text())
    vanilla, own = results["estimators"]["opd"], results["estimators"]["opd_clipped"]
    assert own["token"]["value"] < vanilla["token"]["value"]
    assert own["relative_bias"]["value"] > 0.05 > vanilla["relative_bias"]["value"]
    assert results["colours"] == {"opd_clipped": clipped.colour}
    assert clipped.colour in write_report(tmp_path / "noise").read_text()


def test_an_object_that_no_other_process_can_import_is_refused_before_a_comparison_begins(tmp_path: Path) -> None:
    local = Estimator("mine", "of a notebook", "sampled", vopd.ESTIMATORS["opd"].needs, lambda rows: None)  # type: ignore[arg-type, return-value]
    runs = recipe_runs(Grid([local], [0], [1e-5]), {"model": "s", "teacher_model": "t"})
    with pytest.raises(vopd.errors.ConfigurationError, match=r"'mine'.*module:NAME"):
        prepare(runs, tmp_path / "grid", Measurement("s", "t", "h.jsonl", 1, 1, 1))
    assert not list((tmp_path / "grid" / "configs").iterdir())
    config = VOPDConfig(output_dir=str(tmp_path), estimator=local, use_cpu=True)  # here it trains
    assert copy.copy(config).chosen_estimator is local and copy.deepcopy(config).chosen_estimator == local
    torch.save(config, tmp_path / "training_args.bin")
    assert config.to_dict()["estimator"] == "mine"

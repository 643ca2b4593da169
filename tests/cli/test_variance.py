from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vopd import cli
from vopd.cli.variance import VarianceOptions
from vopd.errors import ConfigurationError
from vopd.experiments.rollouts import Rollout
from vopd.experiments.variance import decompose_variance


def options(**more: Any) -> VarianceOptions:
    return VarianceOptions("student", "teacher", "prompts.jsonl", **more)


@pytest.fixture
def arguments(tiny_student_dir: Path, tiny_teacher_dir: Path, tmp_path: Path) -> list[str]:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{number} + 1 ="}) + "\n" for number in range(9)))
    given = {
        "model": tiny_student_dir, "teacher_model": tiny_teacher_dir, "dataset": prompts, "output_dir": tmp_path,
        "run_name": "noise", "contexts": 3, "resamples": 4, "max_completion_length": 6, "device": "cpu",
    }  # fmt: skip
    return ["variance", *(text for name, value in given.items() for text in (f"--{name}", str(value)))]


def test_measures_prints_and_writes(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*arguments, "--estimators", "opd,vopd_top_k,full_rkl", "--loss_top_k", "2"]) == 0
    results = json.loads((tmp_path / "noise" / "results.json").read_text())
    assert list(results["estimators"]) == ["opd", "vopd_top_k", "full_rkl"]
    assert results["estimators"]["opd"]["token"]["value"] > 0
    assert results["estimators"]["full_rkl"]["total"] == pytest.approx(results["context"])
    assert results["settings"]["contexts"] == 3 and results["profile"]["by_position"][0]["low"] == 1
    assert (tmp_path / "noise" / "variance.png").read_bytes().startswith(b"\x89PNG")
    shown, noted = capsys.readouterr()
    first = "parameters: student 28,384 in float32, all trained; teacher 67,888 in float32, on cpu"
    assert first in noted.splitlines()
    assert all(name in shown for name in ("opd", "token part", "context part", "value baseline raises", "no noise"))
    assert cli.main(arguments) == 2  # never overwritten


def test_a_lora_adapter_is_measured_in_its_own_parameters(
    tiny_student_dir: Path, tiny_teacher_dir: Path, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    from vopd.models import load_model

    assert all(parameter.requires_grad for parameter in load_model(tiny_student_dir, trainable=True).parameters())
    adapted = peft.get_peft_model(load_model(tiny_student_dir), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path)
    student = load_model(tmp_path, trainable=True)
    trained = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    rollouts = [Rollout([5, 6], [7, 8, 9]), Rollout([6], [8, 5])]
    found = decompose_variance(student, load_model(tiny_teacher_dir), rollouts, estimators=["vopd"], resamples=3)
    assert found.context.value > 0 and found.estimators["vopd"].token.value > 0


@pytest.mark.parametrize(
    "wrong", [{"estimators": ["vopdd"]}, {"contexts": 1}, {"resamples": 1}, {"loss_top_k": 0}, {"temperature": 0.0}]
)
def test_settings_without_meaning_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        options(**wrong)

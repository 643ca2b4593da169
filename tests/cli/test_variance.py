from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from messages import told
from teachers.stub_server import StubServer
from vopd import cli
from vopd.cli.variance import VarianceOptions, measure
from vopd.errors import ConfigurationError
from vopd.experiments.rollouts import Rollout
from vopd.experiments.teacher_states import local_states
from vopd.experiments.variance import decompose_variance
from vopd.models import load_model


def options(**more: Any) -> VarianceOptions:
    return VarianceOptions("student", "teacher", "prompts.jsonl", **more)


@pytest.fixture
def served(tiny_teacher_dir: Path, tiny_tokenizer: Any) -> Iterator[Callable[..., StubServer]]:
    """served(**options): a stub server of the tiny teacher, which gives hidden states by default."""
    servers: list[StubServer] = []

    def start(**options: Any) -> StubServer:
        given = {"pools": "token_embed", **options}
        servers.append(StubServer(load_model(tiny_teacher_dir), tiny_tokenizer, **given))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def small(tiny_student_dir: Path, tiny_teacher_dir: Path) -> Callable[..., VarianceOptions]:
    """small(**more): the options of a quick measurement on a CPU."""

    def make(**more: Any) -> VarianceOptions:
        given = {"estimators": ["vopd_optimal", "rao_blackwell_teacher_top_k"], **more}
        return VarianceOptions(
            str(tiny_student_dir), str(tiny_teacher_dir), "prompts.jsonl", **given, resamples=3, loss_top_k=3,
            max_completion_length=6, device="cpu",
        )  # fmt: skip

    return make


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


def numbers(found: Any) -> list[float]:
    """All numbers of a results.json but the settings, in order."""
    if isinstance(found, dict):
        found = [entry for name, entry in found.items() if name != "settings"]
    if isinstance(found, list | tuple):
        return [number for entry in found for number in numbers(entry)]
    return [found] if isinstance(found, float | int) else []


def test_hidden_states_of_a_server_give_the_numbers_of_a_teacher_here(
    small: Callable[..., VarianceOptions],
    served: Callable[..., StubServer],
    tiny_tokenizer: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server, prompts = served(), tiny_tokenizer([f"{number} + 1 =" for number in range(3)])["input_ids"]
    local = numbers(measure(small(), prompts))
    whole = numbers(measure(small(teacher_server_url=server.url), prompts))
    assert len(local) > 50 and whole == pytest.approx(local, rel=1e-5, abs=1e-8)
    sent = [tuple(body["input"]) for body in server.bodies if body["input"] not in prompts]
    assert len(sent) == len(set(sent)) == 3  # each rollout once, whatever is measured
    assert {body["embed_dtype"] for body in server.bodies[-3:]} == {"float32"}
    assert told("parameters ... teacher on a server, its output head 320 x 48", capsys.readouterr().err)
    measure(small(teacher_server_url=server.url, teacher_server_dtype="bfloat16", estimators=["opd"]), prompts[:2])
    assert {body["embed_dtype"] for body in server.bodies[-2:]} == {"bfloat16"}


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        ({"pools": None}, 2, "no hidden states ... --runner pooling"),
        ({"max_model_len": 9}, 2, "up to 9 tokens ... max_completion_length=6 ... --max-model-len"),
        ({"key": "a-key"}, 5, "key ... teacher_server_key_env"),
        ({"names": ("a", "b")}, 2, "teacher_server_model ... a, b"),
    ],
)
def test_a_server_that_cannot_be_measured_is_refused_before_a_rollout(
    given: dict[str, Any],
    code: int,
    words: str,
    arguments: list[str],
    served: Callable[..., StubServer],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vopd.experiments.rollouts.sample", None)
    assert cli.main([*arguments, "--teacher_server_url", served(**given).url]) == code
    assert told(words, capfd.readouterr().err) and not (tmp_path / "noise").exists()


def test_a_lora_adapter_is_measured_in_its_own_parameters(
    tiny_student_dir: Path, tiny_teacher_dir: Path, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    assert all(parameter.requires_grad for parameter in load_model(tiny_student_dir, trainable=True).parameters())
    adapted = peft.get_peft_model(load_model(tiny_student_dir), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path)
    student = load_model(tmp_path, trainable=True)
    trained = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    rollouts = [Rollout([5, 6], [7, 8, 9]), Rollout([6], [8, 5])]
    teacher = local_states(load_model(tiny_teacher_dir))
    found = decompose_variance(student, teacher, rollouts, estimators=["vopd"], resamples=3)
    assert found.context.value > 0 and found.estimators["vopd"].token.value > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"estimators": ["vopdd"]},
        {"contexts": 1},
        {"resamples": 1},
        {"loss_top_k": 0},
        {"temperature": 0.0},
        {"teacher_server_dtype": "int8"},
        {"teacher_server_url": "host:8001"},
        {"teacher_server_key_env": "sk-1"},
    ],
)
def test_settings_without_meaning_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        options(**wrong)

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from messages import says, told
from vopd import cli
from vopd.cli.eval import EvalOptions
from vopd.data.chat import Rendered
from vopd.errors import ConfigurationError
from vopd.evaluation.benchmarks import Protocol
from vopd.evaluation.engines import Sampler
from vopd.models import Completion

Evaluate = Callable[..., int]


class TestOptions:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({}, "--benchmark ... --task ... --data"),
            ({"task": "reasoning_gym:a", "data": "b"}, "--benchmark ... --task ... --data"),
            ({"benchmark": "math500", "data": "b"}, "--benchmark ... --task ... --data"),
            ({"task": "gsm8k"}, "reasoning_gym:NAME"),
            ({"data": "b", "kind": "maths"}, "math ... choice"),
            ({"data": "b", "samples": 0}, "samples ... 1"),
            ({"data": "b", "count": 0}, "count ... 1"),
            ({"data": "b", "backend": "sglang"}, "sglang ... transformers, vllm"),
            ({"data": "b", "max_model_len": 4096}, "max_model_len ... backend=vllm"),
            ({"data": "b", "gpu_memory_utilization": 0.5}, "gpu_memory_utilization ... backend=vllm"),
            ({"data": "b", "backend": "vllm", "max_model_len": 0}, "max_model_len ... 1"),
            ({"data": "b", "backend": "vllm", "gpu_memory_utilization": 1.5}, "gpu_memory_utilization ... 1 ... 1.5"),
            ({"data": "b", "backend": "vllm", "gpu_memory_utilization": 0}, "gpu_memory_utilization ... 0"),
        ],
    )
    def test_refusals(self, given: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigurationError, match=says(message)):
            EvalOptions("model", **given)


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    rows = [{"Problem": f"What is {n} + 3?", "Answer": n + 3} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def evaluate(tiny_student_dir: Path, tmp_path: Path) -> Evaluate:
    def call(*more: str, name: str = "scored") -> int:
        return cli.main([
            "eval", "--model", str(tiny_student_dir), "--output_dir", str(tmp_path / "runs"),
            "--run_name", name, "--max_new_tokens", "5", "--samples", "2", "--device", "cpu", *more,
        ])  # fmt: skip

    return call


def answers_with(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def letters(text: list[str]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[*map(ord, one)] for one in text]}

    def open_sampler(source: str, *_: Any) -> Sampler:
        def draw(prompts: Sequence[Rendered], protocol: Protocol, seed: int) -> list[Completion]:
            return [Completion(text, (5, 6), False) for _ in prompts]

        return Sampler(letters, draw)

    monkeypatch.setattr("vopd.evaluation.completions.open_sampler", open_sampler)


def results(tmp_path: Path, name: str = "scored") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "runs" / name / "results.json").read_text())
    return found


def test_a_file_is_sampled_graded_and_written(
    evaluate: Evaluate, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--data", str(problems), "--template", "{problem}") == 0
    lines = (tmp_path / "runs" / "scored" / "samples.jsonl").read_text().splitlines()
    assert len(lines) == 6 and json.loads(lines[0])["prompt"] == "What is 0 + 3?"
    assert results(tmp_path)["benchmarks"][0]["protocol"]["max_new_tokens"] == 5
    printed, noted = capsys.readouterr()
    assert told("parameters ... 28,384 in float32, on cpu", noted)
    assert all(name in printed for name in ("avg@2", "pass@2", "maj@2", "[0.0, 0.0]", "hint: most completions"))


def test_right_answers_count(
    evaluate: Evaluate, problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers_with(r"so \boxed{4}", monkeypatch)
    evaluate("--data", str(problems))
    assert results(tmp_path)["results"][0]["avg_at_k"]["value"] == pytest.approx(1 / 3)


def test_benchmarks_by_name_from_files(
    evaluate: Evaluate, problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    answers_with(r"so \boxed{4}", monkeypatch)
    seen = tmp_path / "seen.jsonl"
    seen.write_text('{"prompt": "Think. What is 1 + 3?"}')
    assert evaluate("--benchmark", f"math500={problems},amc23={problems}", "--training_prompts", str(seen)) == 0
    assert [row["benchmark"] for row in results(tmp_path)["results"]] == ["math500", "amc23"]
    assert told("amc23 ... 1 ... training prompts", capsys.readouterr().out)


def test_the_paired_difference_to_an_earlier_evaluation(
    evaluate: Evaluate, problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    answers_with(r"so \boxed{9}", monkeypatch)
    evaluate("--data", str(problems), name="first")
    answers_with(r"so \boxed{4}", monkeypatch)
    assert evaluate("--data", str(problems), "--against", str(tmp_path / "runs" / "first"), name="second") == 0
    assert "+33.3 points" in capsys.readouterr().out


def test_completions_survive_a_failure_of_grading(
    evaluate: Evaluate, problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise ConfigurationError("grading failed")

    with monkeypatch.context() as patch:
        patch.setattr("vopd.evaluation.scores.grade_many", fail)
        assert evaluate("--data", str(problems)) == 2
    (journal,) = (tmp_path / "runs" / "scored" / "completions").iterdir()
    assert journal.read_text()
    monkeypatch.setattr("vopd.evaluation.completions.open_sampler", fail)  # nothing is drawn again
    assert evaluate("--data", str(problems)) == 0


def test_multiple_choice(evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "choices.jsonl"
    path.write_text('{"question": "A or B?", "answer": "B"}\n{"question": "B or A?", "answer": "A"}\n')
    answers_with("The answer is **B**.", monkeypatch)
    assert evaluate("--data", str(path), "--kind", "choice") == 0
    assert results(tmp_path)["results"][0]["avg_at_k"]["value"] == 0.5


def test_a_task_is_graded_by_its_own_verifier(
    evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vopd.data.reasoning import reasoning_problems

    gold = reasoning_problems("chain_sum", 4, 0)[2].answer
    answers_with(f"so <answer>{gold}</answer>", monkeypatch)
    assert evaluate("--task", "reasoning_gym:chain_sum", "--count", "4") == 0
    assert results(tmp_path)["results"][0]["avg_at_k"]["value"] >= 0.25


def test_an_earlier_result_is_not_overwritten(
    evaluate: Evaluate, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate("--data", str(problems))
    first = (tmp_path / "runs" / "scored" / "results.json").read_text()
    assert evaluate("--data", str(problems), "--seed", "5") == 2
    assert told("scored ... settings ... folder", capsys.readouterr().err)
    assert (tmp_path / "runs" / "scored" / "results.json").read_text() == first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"problem": "a"}', "line 1 ... no answer"),
        ('{"problem": "a", "answer": null}', "line 1 ... no answer"),
        ('{"text": "a", "answer": "b"}', "columns text, answer"),
        ("", "no rows"),
    ],
)
def test_bad_data_is_named(
    evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    assert evaluate("--data", str(path)) == 3
    assert told(message, capsys.readouterr().err)

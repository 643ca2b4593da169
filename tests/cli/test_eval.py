from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vopd import cli
from vopd.cli.eval import EvalOptions, score, summary
from vopd.errors import ConfigurationError, DataError

Evaluate = Callable[..., int]


def records(*rows: list[str]) -> list[dict[str, Any]]:
    return [
        {"problem": index, "outcome": outcome, "truncated": outcome == "no_answer", "length": 10}
        for index, row in enumerate(rows)
        for outcome in row
    ]


class TestScore:
    def test_avg_and_pass_at_k(self) -> None:
        found = score(records(["right", "wrong"], ["no_answer", "wrong"]), 2)
        assert found["avg_at_k"]["value"] == 0.25 and found["pass_at_k"]["2"]["value"] == 0.5
        assert (found["no_answer"], found["truncated"], found["mean_length"]) == (0.25, 0.25, 10)

    def test_k_goes_up_in_powers_of_two_to_the_samples(self) -> None:
        assert list(score(records(["right"] * 6), 1)["pass_at_k"]) == ["1", "2", "4", "6"]

    def test_an_unreadable_gold_is_left_out_and_counted(self) -> None:
        found = score(records(["right"], ["ungradable"]), 2)
        assert (found["avg_at_k"]["value"], found["problems"], found["ungradable_problems"]) == (1.0, 1, 1)

    def test_no_readable_gold(self) -> None:
        with pytest.raises(DataError, match="no gold answer"):
            score(records(["ungradable"]), 1)

    def test_summary_shows_intervals_and_a_hint_where_answers_are_missing(self) -> None:
        found = {**score(records(["right", "no_answer"], ["no_answer"] * 2), 2), "settings": {"data": "p.jsonl"}}
        text = summary(found)
        assert "avg@2    25.0 % [0.0, 50.0]" in text and r"\boxed{}" in text


class TestOptions:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({}, "either --task"),
            ({"task": "reasoning_gym:a", "data": "b"}, "either --task"),
            ({"task": "gsm8k"}, "write reasoning_gym:NAME"),
            ({"data": "b", "temperature": 0, "samples": 4}, "all samples are equal"),
            ({"data": "b", "kind": "maths"}, "choose one of math, choice"),
            ({"data": "b", "samples": 0}, "samples must be at least 1"),
            ({"data": "b", "count": 0}, "count must be at least 1"),
        ],
    )
    def test_refusals(self, given: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            EvalOptions("model", **given)

    def test_greedy_needs_one_sample(self) -> None:
        assert (EvalOptions("m", data="b").samples, EvalOptions("m", data="b", temperature=0).samples) == (8, 1)


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    rows = [{"Problem": f"What is {n} + 3?", "Answer": n + 3} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def evaluate(tiny_student_dir: Path, tmp_path: Path) -> Evaluate:
    def call(*more: str) -> int:
        return cli.main([
            "eval", "--model", str(tiny_student_dir), "--output_dir", str(tmp_path / "runs"),
            "--run_name", "scored", "--max_new_tokens", "5", "--samples", "2", "--device", "cpu", *more,
        ])  # fmt: skip

    return call


def answers_with(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vopd import models

    def sample(model: Any, tokenizer: Any, prompts: list[str], *, samples: int, **settings: Any) -> Any:
        return [[models.Completion(text, (5, 6), False)] * samples for _ in prompts]

    monkeypatch.setattr(models, "sample", sample)


def results(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "runs" / "scored" / "results.json").read_text())
    return found


def test_a_file_is_sampled_graded_and_written(
    evaluate: Evaluate, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--data", str(problems)) == 0
    lines = (tmp_path / "runs" / "scored" / "samples.jsonl").read_text().splitlines()
    assert len(lines) == 6 and json.loads(lines[0])["prompt"] == "What is 0 + 3?"
    assert results(tmp_path)["settings"]["max_new_tokens"] == 5
    assert "avg@2" in capsys.readouterr().out


def test_right_answers_count(
    evaluate: Evaluate, problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers_with(r"so \boxed{4}", monkeypatch)
    evaluate("--data", str(problems))
    assert results(tmp_path)["avg_at_k"]["value"] == pytest.approx(1 / 3)


def test_completions_survive_a_failure_of_grading(
    evaluate: Evaluate, problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vopd import evaluation

    def fail(*arguments: Any) -> None:
        raise DataError("grading failed")

    monkeypatch.setattr(evaluation, "grade_many", fail, raising=False)
    assert evaluate("--data", str(problems)) == 3
    assert len((tmp_path / "runs" / "scored" / "samples.jsonl").read_text().splitlines()) == 6


def test_multiple_choice(evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "choices.jsonl"
    path.write_text('{"question": "A or B?", "answer": "B"}\n{"question": "B or A?", "answer": "A"}\n')
    answers_with("The answer is **B**.", monkeypatch)
    assert evaluate("--data", str(path), "--kind", "choice") == 0
    assert results(tmp_path)["avg_at_k"]["value"] == 0.5


def test_a_task_is_graded_by_its_own_verifier(
    evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vopd.data.reasoning import reasoning_problems

    gold = reasoning_problems("chain_sum", 4, 0)[2].answer
    answers_with(f"so <answer>{gold}</answer>", monkeypatch)
    assert evaluate("--task", "reasoning_gym:chain_sum", "--count", "4") == 0
    assert results(tmp_path)["avg_at_k"]["value"] >= 0.25


def test_an_earlier_result_is_not_overwritten(
    evaluate: Evaluate, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate("--data", str(problems))
    first = (tmp_path / "runs" / "scored" / "results.json").read_text()
    assert evaluate("--data", str(problems), "--seed", "5") == 2
    assert "choose another --run_name" in capsys.readouterr().err
    assert (tmp_path / "runs" / "scored" / "results.json").read_text() == first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"problem": "a"}', "row 0 has no column answer; it has: problem"),
        ('{"problem": "a", "answer": null}', "row 0: the answer must be text or a number, not None"),
        ('{"text": "a", "answer": "b"}', "it has: text, answer"),
        ("", "has no rows"),
    ],
)
def test_bad_data_is_named(
    evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    assert evaluate("--data", str(path)) == 3
    assert message in capsys.readouterr().err

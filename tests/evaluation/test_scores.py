"""Majority vote over equal answers, and the rates of a benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from messages import says
from vopd.data.reasoning import Problem
from vopd.errors import ConfigurationError, DataError
from vopd.evaluation import Grade, maj_at_k
from vopd.evaluation.benchmarks import Benchmark, Protocol, Question
from vopd.evaluation.grading import ungradable
from vopd.evaluation.scores import answer_classes, grade_completions, majority_credit, score


def box(*answers: str) -> list[str]:
    return [rf"so \boxed{{{answer}}}" if answer else "no idea" for answer in answers]


def vote(*answers: str, gold: str) -> float:
    return maj_at_k([box(*answers)], [gold]).value


def test_equal_answers_vote_together() -> None:
    # As strings, 2 has most votes; as mathematics, one half has three.
    assert vote("2", "2", r"\frac{1}{2}", "0.5", "1/2", gold="0.5") == 1
    assert vote("2", "2", r"\frac{1}{2}", "0.5", "1/2", gold="2") == 0
    assert vote("x+1", "1+x", "x", "x", "x+1", gold="1+x") == 1


def test_the_most_frequent_answer_decides() -> None:
    assert vote("3", "3", "4", gold="4") == 0
    assert vote("3", "3", "4", gold="3") == 1


def test_ties_share_the_credit() -> None:
    assert vote("3", "4", gold="4") == 0.5
    assert vote("3", "4", "5", gold="4") == pytest.approx(1 / 3)
    assert vote("3", "4", "5", "3", "4", gold="4") == 0.5


def test_no_answer_is_a_class_that_loses() -> None:
    assert vote("", "", "4", gold="4") == 0
    assert vote("", "4", "4", gold="4") == 1
    assert vote("", "4", gold="4") == 0.5
    assert vote("", "", gold="4") == 0


def test_the_mean_is_over_problems_with_an_interval() -> None:
    found = maj_at_k([box("1", "1", "2"), box("1", "2", "2")], ["1", "1"])
    assert (found.value, found.count) == (0.5, 2)
    assert found.low == 0 and found.high == 1


def test_a_problem_without_readable_gold_is_left_out() -> None:
    assert maj_at_k([box("1"), box("5"), box("")], ["1", r"\frac{1}{", r"\frac{1}{"]).count == 1
    with pytest.raises(DataError, match=says("no reference answer")):
        maj_at_k([box("1")], [r"\frac{1}{"])


def test_letters_vote() -> None:
    assert maj_at_k([["**B**", "The answer is B.", "C"]], ["B"], kind="choice").value == 1


@pytest.mark.parametrize(("answers", "golds"), [([], []), ([["1"]], []), ([["1"], []], ["1", "1"]), ([[]], ["1"])])
def test_wrong_shapes(answers: list[list[str]], golds: list[str]) -> None:
    with pytest.raises(DataError):
        maj_at_k(answers, golds)


def test_unknown_kind() -> None:
    with pytest.raises(ConfigurationError):
        maj_at_k([["1"]], ["1"], kind="essay")


def test_classes_are_numbered_by_first_appearance() -> None:
    rows = [["1", None, "2", "1.0", "2/1"], [None, None, None, None, None], ["a", "A", "a", "b", "a"]]
    assert answer_classes(rows, "math")[:2] == [[0, None, 1, 0, 1], [None] * 5]
    assert answer_classes(rows[2:], "choice") == [[0, 1, 0, 2, 0]]


def test_credit_of_a_class_is_that_of_its_answer() -> None:
    assert majority_credit([0, 0, 1], [True, True, False]) == 1
    assert majority_credit([0, 1, 1], [True, False, False]) == 0
    assert majority_credit([None, 0], [False, True]) == 0.5
    assert majority_credit([None, None, 0], [True, True, True]) == 0  # no answer is never right, whatever it says


def test_ungradable_is_a_property_of_the_gold() -> None:
    assert ungradable(["1", r"\frac{1}{", "0", r"\sqrt{2}"], "math") == [False, True, False, False]
    assert ungradable(["A", "the first"], "choice") == [False, True]


class TestGradesByKind:
    """One function grades every set of questions, whatever its kinds."""

    def test_each_question_by_its_own_kind_and_in_order(self) -> None:
        task = Problem("chain_sum", "3 + 4 =", "7")
        questions = [
            Question("a", "", "0.5", "math"),
            Question("b", "3 + 4 =", "7", "task", task),
            Question("c", "", "B", "choice"),
            Question("d", "", "7", "tags"),
            Question("e", "", "0.5", "math"),
        ]
        texts = [r"\boxed{\frac12}", "<answer>7.0</answer>", "The answer is B.", "<answer>7.0</answer>", "none"]
        outcomes = [grade.outcome for grade in grade_completions(questions, texts)]
        assert outcomes == ["right", "right", "right", "wrong", "no_answer"]

    @pytest.mark.parametrize("kind", ["task", "tags"])
    def test_without_answer_tags_there_is_no_answer(self, kind: str) -> None:
        question = Question("a", "", "7", kind, Problem("chain_sum", "3 + 4 =", "7"))
        assert grade_completions([question], ["7"]) == [Grade("no_answer")]

    def test_a_function_of_ones_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It gets the rows as a reward function does; None is no verdict on the completion."""
        (tmp_path / "module_of_graders.py").write_text(
            "def close(completions, answer, level, **rest):\n"
            "    assert set(rest) == {'prompts', 'problem'}\n"
            "    rows = zip(completions, answer, level)\n"
            "    return [None if l is None else float(abs(float(c) - a) < l) for c, a, l in rows]\n"
            "def fails(completions):\n    raise KeyError('level')\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.path", list(__import__("sys").path))
        rows = [{"problem": "", "answer": 7, "level": level} for level in (0.5, 0.1, None)]
        questions = [Question(str(n), "", "7", "module_of_graders:close", row=row) for n, row in enumerate(rows)]
        grades = grade_completions(questions, ["7.3"] * 3)
        assert [grade.outcome for grade in grades] == ["right", "wrong", "ungradable"]
        with pytest.raises(
            ConfigurationError, match=says("grader 'fails' ... KeyError ... module_of_graders.py, line 6")
        ):
            grade_completions([Question("a", "", "7", "module_of_graders:fails")], ["7"])

    def test_refusals(self) -> None:
        with pytest.raises(ConfigurationError, match="unknown kind 'essay'"):
            grade_completions([Question("a", "", "7", "essay")], ["7"])
        with pytest.raises(ValueError, match="longer"):
            grade_completions([Question("a", "", "7", "tags")], ["7", "8"])


def test_score(monkeypatch: pytest.MonkeyPatch) -> None:
    grades = [
        [Grade("right", "1", True), Grade("wrong", "2", True, "timed out")],
        [Grade("no_answer"), Grade("right", "3", False)],
        [Grade("ungradable", "3", True), Grade("no_answer")],
    ]
    flat = [grade for row in grades for grade in row]
    monkeypatch.setattr("vopd.evaluation.scores.grade_completions", lambda questions, completions: flat)
    questions = tuple(Question(name, name, gold, "math") for name, gold in zip("abc", ("1", "3", r"\frac{1}{")))
    benchmark = Benchmark("b", "math", questions, "", None, "", Protocol())
    drawn = [
        {"problem": problem, "sample": sample, "prompt": "", "completion": f"{problem}{sample}",
         "tokens": 10 * (2 * problem + sample + 1), "truncated": (problem, sample) == (1, 0)}
        for sample in (1, 0) for problem in (2, 0, 1)
    ]  # fmt: skip
    entry, lines = score("m", benchmark, drawn)
    assert (entry["problems"], entry["ungradable"], entry["samples"]) == (2, 1, 2)
    assert entry["avg_at_k"]["value"] == 0.5
    assert {k: found["value"] for k, found in entry["pass_at_k"].items()} == {"1": 0.5, "2": 1.0}
    assert entry["maj_at_k"]["value"] == 0.5
    assert entry["format_rate"] == 0.5
    assert entry["truncation_rate"] == pytest.approx(1 / 6)
    assert (entry["timed_out"], entry["mean_length"]) == (1, 35)
    assert entry["per_problem"] == {"a": 0.5, "b": 0.5}
    assert [line["completion"] for line in lines] == ["00", "01", "10", "11", "20", "21"]
    assert [(line["id"], line["outcome"]) for line in lines[:3]] == [("a", "right"), ("a", "wrong"), ("b", "no_answer")]

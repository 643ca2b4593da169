"""Which option is right, in the spellings of public datasets: read as meant, or refused; every row is invented."""

from __future__ import annotations

import json
from typing import Any

import pytest

from messages import says
from vopd.errors import DataError
from vopd.evaluation.benchmarks.fields import is_choice, read_question

WORDS = ["red", "green", "blue", "black"]
SPECIES = ["E. coli", "S. aureus", "B. subtilis", "L. lactis"]
NUMBERS = ["2", "3", "4", "1"]


def choices(labels: list[Any], texts: list[str] = WORDS) -> dict[str, Any]:
    return {"text": texts, "label": labels}


def options(*texts: Any, **columns: Any) -> dict[str, Any]:
    return {"options": list(texts), **columns}


ABCD, COUNTED = choices(["A", "B", "C", "D"]), choices(["1", "2", "3", "4"])

# What the row has beside its question; the letter; the options as they are shown, where they differ from `WORDS`.
READ = {
    "MMLU": ({"choices": WORDS, "answer": 2}, "C", WORDS),
    "MMLU, where the options are numbers": ({"choices": ["0", "4", "2", "6"], "answer": 2}, "C", ["0", "4", "2", "6"]),
    "MMLU-Pro": ({"options": WORDS, "answer": "D", "answer_index": 3}, "D", WORDS),
    "ARC": ({"choices": ABCD, "answerKey": "C"}, "C", WORDS),
    "ARC with numbers": ({"choices": COUNTED, "answerKey": "1"}, "A", WORDS),
    "a whole number where labels are": ({"choices": COUNTED, "answerKey": 1}, "A", WORDS),
    "whole numbers as labels": ({"choices": choices([1, 2, 3, 4]), "answerKey": 4}, "D", WORDS),
    "labels from 0": ({"choices": choices(["0", "1", "2"], WORDS[:3]), "answerKey": "0"}, "A", WORDS[:3]),
    "labels and options that are numbers": (
        {"choices": choices(["1", "2", "3", "4"], NUMBERS), "answerKey": "2"}, "B", NUMBERS,
    ),
    "ARC as published": (
        {
            "question": {"stem": "?", "choices": [{"text": "red", "label": "A"}, {"text": "green", "label": "B"}]},
            "answerKey": "B",
        },
        "B", WORDS[:2],
    ),
    "OpenBookQA": ({"question": None, "question_stem": "?", "choices": ABCD, "answerKey": "D"}, "D", WORDS),
    "objects with labels that are numbers": (
        {"options": [{"label": n, "text": t} for n, t in enumerate(WORDS, 1)], "answer": 3}, "C", WORDS,
    ),
    "MedQA": ({"options": dict(zip("ABCD", WORDS)), "answer": "green", "answer_idx": "B"}, "B", WORDS),
    "keys that other rows have": ({"options": {"A": "red", "B": "green", "C": None}, "answer": "B"}, "B", WORDS[:2]),
    "RACE": ({"options": WORDS, "answer": "B"}, "B", WORDS),
    "LogiQA": ({"query": "?", "options": WORDS, "correct_option": 1}, "B", WORDS),
    "AGIEval": (options("(A)$1$", "(B)$-2$", "(C)$3$", answer=None, label="C"), "C", ["$1$", "$-2$", "$3$"]),
    "C-Eval": ({**dict(zip("ABCD", WORDS)), "answer": "B"}, "B", WORDS),
    "CMMLU": ({"Question": "?", **dict(zip("ABCD", WORDS)), "Answer": "D"}, "D", WORDS),
    "columns of options": ({"option_a": "red", "option_b": "green", "answer": "b"}, "B", WORDS[:2]),
    "WinoGrande": ({"option1": "red", "option2": "green", "answer": "2"}, "B", WORDS[:2]),
    "MuSR": ({"choices": str(WORDS), "answer_index": 1, "answer_choice": "green"}, "B", WORDS),
    "options as JSON": ({"options": json.dumps(dict(zip("ABCD", WORDS))), "answer": "C"}, "C", WORDS),
    "a quiz": ({"options": WORDS, "correct_answer": "blue"}, "C", WORDS),
    "lighteval": ({"choices": WORDS, "gold": [2]}, "C", WORDS),
    "a column of numbers with gaps": ({"options": WORDS, "answer": 2.0}, "C", WORDS),
    "a list of numbers": (options(5, 6.5, 7, answer="6.5"), "B", ["5", "6.5", "7"]),
    "species": (options(*SPECIES, answer="B"), "B", SPECIES),
    "a species by its text": (options(*SPECIES, answer="B. subtilis"), "C", SPECIES),
    "one species like a label": (options("A. thaliana", "L. lactis", answer="B"), "B", ["A. thaliana", "L. lactis"]),
    # Consecutive from A: shown with the letters that are taken off.
    "species like labels": (
        options("A. thaliana", "B. subtilis", answer="B. subtilis"), "B", ["thaliana", "subtilis"],
    ),
    "an initial": (options("I. Newton", "G. Leibniz", answer="I. Newton"), "A", ["I. Newton", "G. Leibniz"]),
    "decimals": (options("1.5", "2.6", "3.7", answer="2.6"), "B", ["1.5", "2.6", "3.7"]),
    "times": (options("1:30", "2:45", answer="B"), "B", ["1:30", "2:45"]),
    "labels that tell options apart": (options("(a) only", "(b) only", answer="B"), "B", ["(a) only", "(b) only"]),
    "labels with dots": (options("A. red", "B. green", answer="B. green"), "B", WORDS[:2]),
    "labels in brackets": (options("(a) red", "(b) green", answer="(b)"), "B", WORDS[:2]),
    "labels of several forms": (options("A) red", "B. green", "(C) blue", answer="C"), "C", WORDS[:3]),
    "numbers as labels": (options("1. red", "2. green", answer=1), "A", WORDS[:2]),
    "numbers as labels, as text": (options("1) red", "2) green", answer="2"), "B", WORDS[:2]),
    "Roman numbers": (options("i. red", "ii. green", "iii. blue", answer="iii"), "C", WORDS[:3]),
    "Chinese signs": (options("A、red", "B、green", answer="B"), "B", WORDS[:2]),
    "a letter left out": (options("A. red", "C. green", answer="B"), "B", ["A. red", "C. green"]),
    "labels on some": (options("A. red", "green", answer="B"), "B", ["A. red", "green"]),
    "labels given twice": (
        {"choices": choices(["A", "B"], ["A. red", "B. green"]), "answerKey": "B"}, "B", WORDS[:2],
    ),
    "labels of another kind": (
        {"choices": choices(["1", "2"], ["A. red", "B. green"]), "answerKey": "2"}, "B", ["A. red", "B. green"],
    ),
    "an answer with its label": (options("red", "green", answer="(B) green"), "B", WORDS[:2]),
    "digits as text": (options(*NUMBERS, answer="2"), "A", NUMBERS),
    "letters as options": (options("A", "B", "AB", "O", answer="B"), "B", ["A", "B", "AB", "O"]),
    "letters as options, with a letter": (options("A", "C", "G", "T", answer_letter="C"), "C", ["A", "C", "G", "T"]),
    "two equal options": (options("red", "red", "blue", answer="C"), "C", ["red", "red", "blue"]),
    "true or false": (options("True", "False", answer=False), "B", ["True", "False"]),
    "options in the question": ({"answer": "(C)"}, "C", None),
}  # fmt: skip

REFUSED = {
    "a letter that is an option too": (
        options("A", "C", "G", "T", answer="C"), "answer 'C' ... more than one ... answer_letter",
    ),
    "a label that is an option too": (
        {"options": {"A": "O", "B": "A", "C": "B"}, "answer": "B", "answer_idx": "C"}, "answer 'B', answer_idx 'C'",
    ),
    "a number that is an option too": (options(2, 3, 4, 1, answer=2), "more than one"),
    "HellaSwag, from 0 or from 1": (options(*WORDS, label="3"), "label '3' ... none ... count ... from 0"),
    "MedMCQA, from 0 or from 1": ({"opa": "red", "opb": "green", "cop": 1}, "cop 1 ... none ... letter"),
    "KMMLU, from 1": ({**dict(zip("ABCD", WORDS)), "answer": 2}, "answer 2 ... none"),
    "COPA, from 0 or from 1": ({"option1": "red", "option2": "green", "answer": 1}, "answer 1 ... none"),
    "hidden": (options(*WORDS, label=-1), "label -1 ... none of its options"),
    "beyond the last": (options(*WORDS, answer=4), "answer 4 ... none"),
    "no answer": ({"choices": ABCD, "answerKey": ""}, "no answer"),
    "columns that disagree": (options(*WORDS, answer="A", answer_index=1), "answer 'A', answer_index 1 ... no option"),
    "several answers": (options(*WORDS, answer=["A", "C"]), "none of its options"),
    "the text of two": (options("red", "red", answer="red"), "more than one"),
    "true": (options(*WORDS, answer=True), "True ... none"),
    "not a number": (options(*WORDS, answer=float("nan")), "nan ... none"),
    "more options than letters": (options(*map(str, range(11)), answer="A"), "11 options ... 2 to 10"),
    "one option": (options("red", answer="A"), "1 option"),
    "an option without text": (options("red", "", "blue", answer="A"), "option 2 is ''"),
    "an option that is no text": (options("red", None, answer="A"), "option 2 is None"),
    "options that are objects": (options({"a": "red"}, {"b": "green"}, answer="A"), "option 1 is {"),
    "labels for others": ({"choices": choices(["A", "B"]), "answerKey": "A"}, "4 options and 2 labels"),
    "a label twice": ({"choices": choices(["A", "A"], WORDS[:2]), "answerKey": "A"}, "same label"),
    "a printed array": ({"options": "['red' 'green'\n 'blue']", "answer": "A"}, "1 option"),
    "options in one text": ({"options": "a ) red , b ) green", "answer": "a"}, "not JSON"),
    "TruthfulQA, where the first is always right": (
        {"choices": {"choices": WORDS, "labels": [1, 0, 0, 0]}, "answer": "A"}, "option 1 is ['red'",
    ),
    "TruthfulQA without a right answer": ({"incorrect_answers": WORDS}, "correct_answer"),
    "correct and incorrect": ({"correct_answer": "red", "incorrect_answers": WORDS}, "correct_answer ... 'red'"),
    "a letter that is not graded": ({"answer": "K"}, "answer 'K' ... A to J"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_read_as_meant(name: str) -> None:
    columns, letter, shown = READ[name]
    row = {"question": "?", **columns}
    question = read_question(row, "choice", "row")
    assert question.gold == letter
    assert is_choice(row) == (shown is not None)
    expected = [f"{letter}. {option}" for letter, option in zip("ABCDEFGHIJ", shown or [])]
    assert question.text.splitlines()[2:] == expected


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    columns, message = REFUSED[name]
    with pytest.raises(DataError, match=says(message)) as error:
        read_question({"question": "?", **columns}, "choice", "row 3")
    assert str(error.value).startswith("row 3") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "columns",
    [
        {"correct_answer": "red", "distractor1": "green", "distractor2": "blue", "distractor3": "black"},
        {"correct_answer": "red", "incorrect_answers": ["green", "blue", "black"]},
    ],
)
def test_distractors_are_options(columns: dict[str, Any]) -> None:
    question = read_question({"id": "7", "question": "?", **columns}, "choice", "row")
    assert sorted(line[3:] for line in question.text.splitlines()[2:]) == sorted(WORDS)
    assert f"{question.gold}. red" in question.text.splitlines()


@pytest.mark.parametrize("columns", [{"a": 12, "b": 30, "c": 0}, {"A": 12, "B": 30}])
def test_numbers_of_a_sum_are_no_options(columns: dict[str, int]) -> None:
    row = {"question": "12 + 30?", **columns, "answer": 42}
    assert not is_choice(row) and read_question(row, "math", "row").gold == "42"

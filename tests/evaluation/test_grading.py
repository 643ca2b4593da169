"""What counts as the answer of a completion, and the outcomes besides right and wrong."""

from __future__ import annotations

import pytest

from messages import says
from vopd.errors import ConfigurationError, DataError
from vopd.evaluation import Grade, grade, grade_many
from vopd.evaluation.grading.extract import last_box, strip_thinking


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{4}, no: \boxed{5}", "5"),
        (r"\boxed{5} and then \boxed{6", "5"),  # cut off: the last balanced one counts
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right."),  # an escaped brace does not count
        (r"\boxed {5}", "5"),
        (r"\fbox{5}", "5"),
        (r"\\boxed{5}", "5"),
        (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        (r"\boxed{\boxed{1} \text{ and } \boxed{2}}", "1, 2"),
        (r"\boxed{2 + 3 = \boxed{5}}", "5"),
        (r"no box at all: 5", None),
        (r"\boxed{5", None),
        (r"\boxed 5", None),
    ],
)
def test_last_balanced_box(text: str, answer: str | None) -> None:
    assert last_box(text) == answer


def test_two_boxes_side_by_side_are_not_merged() -> None:
    assert grade(r"\boxed{1} \boxed{2}", "2").outcome == "right"
    assert grade(r"\boxed{1} \boxed{2}", r"1, 2").outcome == "wrong"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<think>a</think>b", "b"),
        ("a<think>b</think>c", "ac"),
        ("a</think>b", "b"),  # opened by the chat template, in the prompt
        ("<Think>a</THINK>b", "b"),
        ("<thinking>a</thinking>b", "b"),
        ("[THINK]a[/THINK]b", "b"),
        ("<think>a<think>b</think>c</think>d", "d"),
        ("<think>a", None),
        ("a<think>b", None),
        ("<think>a</think>b<think>c", None),
        ("plain", "plain"),
    ],
)
def test_thinking_is_stripped(text: str, kept: str | None) -> None:
    assert strip_thinking(text) == kept


def test_thinking_never_scores() -> None:
    assert grade(r"<think>\boxed{5}</think>\boxed{6}", "5").outcome == "wrong"
    assert grade(r"<think>\boxed{5}</think>nothing", "5").outcome == "no_answer"
    assert grade(r"<think>so \boxed{5}", "5").outcome == "no_answer"
    assert grade(r"\boxed{5}<think>or is it", "5").outcome == "no_answer"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "I do not know",
        "The answer is 42.",
        "it is $42$",
        "42\n\nis the answer",
        r"\boxed{}",
        r"\boxed{ }",
    ],
)
def test_without_a_box_there_is_no_answer(text: str) -> None:
    assert grade(text, "42").outcome == "no_answer"


@pytest.mark.parametrize("text", ["42", " 42 ", "$42$", r"\frac{84}{2}", "6*7", "x = 42"])
def test_a_lone_expression_is_its_own_answer(text: str) -> None:
    found = grade(text, "42")
    assert found.outcome == "right" and not found.boxed


@pytest.mark.parametrize(
    "box",
    [
        "The sum is 42.",
        "The largest $n$ is 42.",
        "the sum is $42$",
        "Answer $42$",
        r"Therefore $x = 42$ it is",
    ],
)
def test_a_sentence_in_the_box(box: str) -> None:
    assert grade(rf"\boxed{{{box}}}", "42").outcome == "right"


def test_an_unreadable_gold_is_never_wrong() -> None:
    assert grade(r"\boxed{5}", r"\frac{1}{").outcome == "ungradable"
    assert grade(r"\boxed{\frac{1}{2}}", r"\frac{1}{").outcome == "ungradable"
    assert grade(r"\boxed{5}", "").outcome == "ungradable"


def test_an_unreadable_answer_is_wrong() -> None:
    assert grade(r"\boxed{\frac{1}{\sqrt}}", "5").outcome == "wrong"


def test_an_endless_answer_is_turned_down_at_once() -> None:
    found = grade(rf"\boxed{{{'1+' * 5000}1}}", "5001")
    assert (found.outcome, found.note) == ("wrong", "too long")


def test_brackets_by_the_hundred_do_no_harm() -> None:
    deep = "(" * 900 + "1" + ")" * 900
    assert grade(rf"\boxed{{{deep}}}", "2").outcome == "wrong"
    assert grade(rf"\boxed{{{deep}}}", r"\sqrt{2}").outcome == "wrong"


def test_many_keep_their_order() -> None:
    pairs = [(rf"\boxed{{{n}}}", str(n if n % 3 else n + 1)) for n in range(30)]
    assert [found.outcome == "right" for found in grade_many(pairs)] == [bool(n % 3) for n in range(30)]
    assert grade_many([]) == []


def test_the_grade_says_what_was_read() -> None:
    assert grade(r"so $\boxed{ x+1 }$", "1+x") == Grade("right", "x+1", True, "")


@pytest.mark.parametrize("limit", [0, -1, 0.5, 5.0, True, None])
def test_limits_are_whole_seconds(limit: object) -> None:
    with pytest.raises(ConfigurationError, match="whole number of seconds"):
        grade(r"\boxed{1}", "1", limit_s=limit)  # type: ignore[arg-type]


def test_unknown_kind() -> None:
    with pytest.raises(ConfigurationError, match=says("'letters' ... math ... choice")):
        grade("B", "B", kind="letters")


@pytest.mark.parametrize("pair", [(None, "1"), ("1", 1)])
def test_what_is_not_text(pair: tuple[object, object]) -> None:
    with pytest.raises(DataError, match=says("pair 0 ... text")):
        grade(*pair)  # type: ignore[arg-type]

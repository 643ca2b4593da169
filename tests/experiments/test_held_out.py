"""Held-out problems: what a file of them holds, and how each is graded."""

from __future__ import annotations

from pathlib import Path

import pytest

from messages import says
from vopd.data.reasoning import Problem
from vopd.errors import ConfigurationError, DataError
from vopd.experiments.held_out import HeldOut, outcomes, read_held_out, write_held_out

TASK = HeldOut.of(Problem("chain_sum", "3 + 4 =", "7", {"difficulty": 1}), "Q: 3 + 4 =")


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    problems = [TASK, HeldOut("What is 1/2?", "0.5"), HeldOut("A or B?", "B")]
    write_held_out(problems, tmp_path / "held_out.jsonl")
    assert read_held_out(tmp_path / "held_out.jsonl") == problems
    assert read_held_out(tmp_path / "held_out.jsonl", 1) == [TASK]


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "no problems"), ('{"prompt": "a"}', "line 1"), ('{"prompt": 3, "answer": "b"}', "line 1 ... text 'prompt'")],
)
def test_a_file_without_problems_is_a_data_error(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text(content)
    with pytest.raises(DataError, match=says(message)):
        read_held_out(tmp_path / "bad.jsonl")


@pytest.mark.parametrize(
    ("kind", "answer", "right", "wrong"),
    [
        ("math", "0.5", r"so \boxed{\frac12}", "so 0.5, I think"),
        ("choice", "B", "The answer is B.", "A"),
        ("tags", "a b", "<answer>a b</answer>", "<answer>a  b</answer>"),
    ],
)
def test_a_problem_without_a_task_is_graded_as_the_kind_says(kind: str, answer: str, right: str, wrong: str) -> None:
    problem = HeldOut("?", answer)
    # Beside it a task's own verifier, which takes 7.0 for 7, whatever the kind.
    texts = [right, "<answer>7.0</answer>", wrong, "7"]
    assert outcomes([problem, TASK, problem, TASK], texts, kind) == [True, True, False, False]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=says("'essay' ... math ... choice ... tags")):
        outcomes([TASK], ["7"], "essay")

"""Problems of reasoning_gym tasks: repeatable, distinct, graded by the library."""

from __future__ import annotations

import pytest

from vopd.data.reasoning import Problem, extract_answer, is_right, reasoning_problems, score
from vopd.errors import ConfigurationError, DataError

CHAIN = {"min_terms": 3, "max_terms": 4, "min_digits": 1, "max_digits": 1}


def test_question_is_the_library_text() -> None:
    problem = reasoning_problems("chain_sum", 1, seed=0, **CHAIN)[0]
    expression = problem.metadata["expression"]
    assert problem.question == f"State the final answer to the following arithmetic problem: {expression} ="
    assert int(problem.answer) == eval(expression)


def test_same_seed_same_problems() -> None:
    assert reasoning_problems("leg_counting", 20, seed=3) == reasoning_problems("leg_counting", 20, seed=3)


def test_neighbouring_seeds_share_hardly_any_problem() -> None:
    """The library's own seeds 0 and 1 differ by one item only; ours must not."""
    first, second = (
        {problem.question for problem in reasoning_problems("leg_counting", 200, seed=seed)} for seed in (0, 1)
    )
    assert len(first & second) <= 2


def test_questions_are_distinct_even_in_a_small_task() -> None:
    problems = reasoning_problems("chain_sum", 150, seed=0, min_terms=2, max_terms=2, max_digits=1)
    assert len({problem.question for problem in problems}) == 150


def test_a_task_that_runs_out_is_a_data_error() -> None:
    with pytest.raises(DataError, match="only about 200 distinct"):
        reasoning_problems("chain_sum", 201, seed=0, min_terms=2, max_terms=2, max_digits=1)


def test_unknown_task_and_bad_options_are_configuration_errors() -> None:
    with pytest.raises(ConfigurationError, match="no_such_task"):
        reasoning_problems("no_such_task", 1, seed=0)
    with pytest.raises(ConfigurationError, match="chain_sum"):
        reasoning_problems("chain_sum", 1, seed=0, colour="red")
    with pytest.raises(ConfigurationError, match="count must be at least 0"):
        reasoning_problems("chain_sum", -1, seed=0)


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("3 + 4 = 7. <answer>7</answer>", True),
        ("<answer> 7 </answer>", True),
        ("<answer>6</answer> no, <answer>7</answer>", True),
        ("<answer>7</answer> no, <answer>6</answer>", False),
        ("<answer>17</answer>", False),
        ("<answer></answer>", False),
        ("7", False),
        ("<answer>7", False),
    ],
)
def test_grading_reads_the_last_answer_tags(completion: str, right: bool) -> None:
    problem = Problem("leg_counting", "How many?", "7")
    assert is_right(problem, completion) is right


def test_partial_credit_is_not_right() -> None:
    problem = Problem("leg_counting", "How many?", "7")
    assert 0 < score(problem, "<answer>7 legs</answer>") < 1
    assert not is_right(problem, "<answer>7 legs</answer>")
    assert score(problem, "7 legs") == 0


def test_the_library_verifier_of_the_task_is_used() -> None:
    """chain_sum accepts a decimal form of the answer, which an exact comparison of texts would refuse."""
    assert is_right(Problem("chain_sum", "3 + 4 =", "7"), "<answer>7.0</answer>")


def test_extract_answer_without_tags() -> None:
    assert extract_answer("the answer is 7") is None

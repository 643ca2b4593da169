"""Custom reward functions in TRL's signature: named arguments in, a number or None for each completion out.

A function gets the arguments that it names: prompts, completions, completion_ids and the columns of the dataset. It
gets all of them with **kwargs.
"""

import re

ANSWER = re.compile(r"<answer>[^<]*</answer>|\\boxed\{[^{}]*\}")


def answer_format(completions, **kwargs):
    """1 where the completion states exactly one final answer and stops right after it, else 0."""
    return [float(ends_with_one_answer(text_of(completion))) for completion in completions]


def ends_with_one_answer(text: str) -> bool:
    answers = list(ANSWER.finditer(text))
    return len(answers) == 1 and len(text.rstrip().rstrip(".$")) <= answers[0].end()


def text_of(completion) -> str:
    """Where prompts are conversations, a completion is a list of one message."""
    return completion if isinstance(completion, str) else completion[-1]["content"]

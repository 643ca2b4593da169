"""Find question, answer and options in the rows of a benchmark, whatever its columns are called.

Names are compared ignoring case, spaces, dashes and underscores, so that "Correct Answer", "correct_answer" and
"correctAnswer" are the same name; a dot selects a field of a nested object ("details.level").
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from vopd.data.reasoning import Problem
from vopd.errors import DataError

from .answer_options import LETTERS, read_options, right_letter

QUESTION = ("problem", "question.stem", "question", "question_stem", "prompt", "query")
ANSWER = (
    "answer", "final_answer", "answer_key", "gold", "ground_truth", "reward_model.ground_truth", "target", "solution",
)  # fmt: skip
OPTIONS = ("options", "choices", "question.choices")
OPTION_COLUMNS = (("option", LETTERS), ("option", "123456789"), ("op", LETTERS))
"""Beginnings of the names of columns with one option each, and the labels that follow; A, B, C alone too."""
RIGHT_OPTION = (
    "answer_key", "letter", "answer_letter", "answer", "answer_index", "answer_idx", "correct_option", "correct_answer",
    "cop",
)  # fmt: skip
"""Columns that name the right option; the others do in rows without these."""
RIGHT_OPTION_ELSE = ("label", "target", "gold")
CORRECT = ("correct_answer",)
INCORRECT = (
    "incorrect_answer_1", "incorrect_answer_2", "incorrect_answer_3", "distractor1", "distractor2", "distractor3",
    "incorrect_answers",
)  # fmt: skip
IDENTITY = (
    "unique_id", "record_id", "problem_id", "question_id", "id", "problem_idx", "uid", "idx", "extra_info.index",
)  # fmt: skip
TASK = "task"
"""The kind of reasoning_gym problems, which their task's own verifier grades."""
_LONGEST_ANSWER = 400


@dataclass(frozen=True)
class Question:
    """One problem of a benchmark.

    `text` is the question, including its options if there are any; `gold` is the reference answer, a letter for
    "choice"; `problem` is the item of a reasoning_gym task; `row` is where it was read from.
    """

    id: str
    text: str
    gold: str
    kind: str
    problem: Any = field(default=None, hash=False, compare=False)
    row: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False, repr=False)

    @property
    def columns(self) -> dict[str, str]:
        """The texts of the row, for templates."""
        return {name.lower(): value for name, value in self.row.items() if isinstance(value, str)}


def find(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Value of the first of these columns that exists and is not empty, else None."""
    for name in names:
        value = _dotted(row, name)
        if value is not None and value != "" and value != []:
            return value
    return None


def _dotted(row: Any, name: str) -> Any:
    for part in name.split("."):
        if not isinstance(row, Mapping):
            return None
        row = next((value for key, value in row.items() if _plain(str(key)) == _plain(part)), None)
    return row


def _plain(name: str) -> str:
    return re.sub(r"[\s_#-]", "", name).lower()


def is_choice(row: Mapping[str, Any]) -> bool:
    """Whether a row has options, as a list, in columns, or as one correct and several incorrect answers."""
    options = find(row, OPTIONS)
    if isinstance(options, Mapping) and "text" in options:
        options = options["text"]
    return bool(options) or bool(_option_columns(row)) or find(row, INCORRECT) is not None


def read_question(row: Mapping[str, Any], kind: str, where: str) -> Question:
    """The question of a row; `where` names the row in errors.

    Raises:
        DataError: there is no question, no answer, or an answer that is none of the options.
    """
    text = _question_text(find(row, QUESTION))
    if text is None:
        raise DataError(
            f"{where} has no question; it has the columns {', '.join(row) or 'none'}; call the question's column "
            f"{QUESTION[0]!r}"
        )
    number = find(row, IDENTITY)
    identity = str(number) if number is not None else hashlib.sha256(text.encode()).hexdigest()[:16]
    if kind == "choice":
        text, gold = _choice(row, text, identity, where)
    else:
        gold = _answer(find(row, ANSWER), where)
    problem = Problem(row["task"], text, gold, _facts(row["metadata"])) if kind == TASK else None
    return Question(identity, text, gold, kind, problem, row)


def is_task(row: Mapping[str, Any]) -> bool:
    """Whether a row is a problem of a reasoning_gym task, with what the task's verifier needs."""
    return isinstance(row.get("task"), str) and isinstance(row.get("metadata"), str | Mapping)


def _facts(metadata: Any) -> dict[str, Any]:
    return json.loads(metadata) if isinstance(metadata, str) else dict(metadata)


def _question_text(value: Any) -> str | None:
    """The text, or the last user message of a conversation."""
    if isinstance(value, list):
        said = [turn.get("content") for turn in value if isinstance(turn, Mapping) and turn.get("role") == "user"]
        value = said[-1] if said else None
    return value.strip() if isinstance(value, str) and value.strip() else None


def _answer(value: Any, where: str) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None:
        raise DataError(f"{where} has no answer; give each problem one, in the column {ANSWER[0]}")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{where} has no answer that is text or a number: {type(value).__name__}")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    # A worked solution serves as reference answer if its result is boxed: the grader reads the last box.
    if len(text) > _LONGEST_ANSWER and "\\boxed" not in text:
        raise DataError(f"{where} has an answer of {len(text)} characters without a box; give only the final answer")
    # A column of floats prints a whole number as 27.0.
    return text[:-2] if re.fullmatch(r"-?\d+\.0", text) else text


def _choice(row: Mapping[str, Any], text: str, identity: str, where: str) -> tuple[str, str]:
    """Question with lettered options, and the letter of the right one."""
    incorrect = _texts(row, INCORRECT)
    if incorrect:
        correct = "".join(_texts(row, CORRECT))
        if not correct or correct in incorrect:
            raise DataError(f"{where} needs a {CORRECT[0]} that is none of its incorrect ones, not '{correct[:40]}'")
        ordered = shuffled(read_options([correct, *incorrect], where).written, identity)
        return with_options(text, ordered), LETTERS[ordered.index(correct)]
    found, columns = find(row, OPTIONS), _option_columns(row)
    options = read_options(found or columns, where, in_columns=not found) if found or columns else None
    # Options that come with letters keep their order: a question may say "both A and B".
    shown = text if options is None else with_options(text, options.texts)
    return shown, right_letter(_named(row, RIGHT_OPTION) or _named(row, RIGHT_OPTION_ELSE), options, where)


def _named(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Values of those columns that exist and are not empty."""
    return {name: value for name in names if (value := find(row, (name,))) is not None}


def _texts(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """What those columns hold, texts or lists of them."""
    values = _named(row, names).values()
    return [str(text).strip() for value in values for text in (value if isinstance(value, list) else [value])]


def _option_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """Options in columns of their own, by label; {} if there are none."""
    # Capitals, and three of them: `a` and `b` are also the numbers of a sum.
    alone = _until_absent({label: row.get(label) for label in LETTERS})
    if len(alone) > 2:
        return alone
    plain = {_plain(str(name)): value for name, value in row.items()}
    found = ({label: plain.get(f"{name}{label.lower()}") for label in labels} for name, labels in OPTION_COLUMNS)
    return next((options for options in map(_until_absent, found) if len(options) > 1), {})


def _until_absent(options: dict[str, Any]) -> dict[str, Any]:
    return dict(takewhile(lambda option: option[1] not in (None, ""), options.items()))


def shuffled(options: Sequence[str], identity: str) -> list[str]:
    """Options in an order that depends only on the question's id and their texts: the same on every machine, in every
    run, and for every order in the source."""
    return sorted(options, key=lambda option: hashlib.sha256(f"{identity}\n{option}".encode()).digest())


def with_options(text: str, options: Sequence[str]) -> str:
    """A question followed by its options, one per line: ``A. ...``."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options)]
    return "\n".join([text, "", *lines])

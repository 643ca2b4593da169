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
from string import ascii_uppercase
from typing import Any

from vopd.data.reasoning import Problem
from vopd.errors import DataError, counted

QUESTION = ("problem", "question", "prompt", "query")
ANSWER = (
    "answer", "final_answer", "answer_key", "gold", "ground_truth", "reward_model.ground_truth", "target", "solution",
)  # fmt: skip
OPTIONS = ("options", "choices")
LETTER = ("answer_key", "letter", "answer_letter", "answer", "answer_index", "label", "target", "gold")
CORRECT, INCORRECT = ("correct_answer",), ("incorrect_answer_1", "incorrect_answer_2", "incorrect_answer_3")
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
    return re.sub(r"[\s_-]", "", name).lower()


def is_choice(row: Mapping[str, Any]) -> bool:
    """Whether a row has options, as a list or as one correct and several incorrect answers."""
    options = find(row, OPTIONS)
    if isinstance(options, Mapping) and "text" in options:
        options = options["text"]
    return bool(options) or find(row, INCORRECT) is not None


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
    correct = find(row, CORRECT)
    if correct is not None:
        options = [str(correct).strip(), *(str(find(row, (name,))).strip() for name in INCORRECT if find(row, (name,)))]
        ordered = shuffled(options, identity)
        return with_options(text, ordered), ascii_uppercase[ordered.index(options[0])]
    answer = find(row, LETTER)
    found = find(row, OPTIONS)
    if found is None:
        # The options are part of the question.
        return text, _letter(answer, [], where)
    labels, options = _labelled(found, where)
    # Options that come with letters keep their order: a question may say "both A and B".
    return with_options(text, options), _letter(answer, options, where, labels)


def shuffled(options: Sequence[str], identity: str) -> list[str]:
    """Options in an order that depends only on the question's id and their texts: the same on every machine, in every
    run, and for every order in the source."""
    return sorted(options, key=lambda option: hashlib.sha256(f"{identity}\n{option}".encode()).digest())


def with_options(text: str, options: Sequence[str]) -> str:
    """A question followed by its options, one per line: ``A. ...``."""
    lines = [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options)]
    return "\n".join([text, "", *lines])


def _labelled(found: Any, where: str) -> tuple[list[str], list[str]]:
    """Labels and texts of options: a list, ``{"text": [...], "label": [...]}``, or ``{"A": ..., "B": ...}``."""
    if isinstance(found, Mapping) and isinstance(_dotted(found, "text"), list):
        texts, labels = _dotted(found, "text"), _dotted(found, "label")
    elif isinstance(found, Mapping):
        texts, labels = list(found.values()), list(found)
    elif isinstance(found, list):
        texts, labels = [option.get("text", option) if isinstance(option, Mapping) else option for option in found], []
    else:
        raise DataError(f"{where} has options of type {type(found).__name__}; give a list")
    labels = labels or ascii_uppercase[: len(texts)]
    if not 2 <= len(texts) <= len(ascii_uppercase) or len(labels) != len(texts):
        raise DataError(
            f"{where} has {counted(len(texts), 'option')} and {counted(len(labels), 'label')}; give 2 to "
            f"{len(ascii_uppercase)} options with one label each"
        )
    unlabelled = [re.sub(r"^\s*[(\[]?[A-Z][.):\]]\s+", "", str(option)).strip() for option in texts]
    return [str(label).strip().upper() for label in labels], unlabelled


def _letter(answer: Any, options: list[str], where: str, labels: Sequence[str] = ()) -> str:
    """The right letter, from a letter, a label, an index from 0, or the text of an option."""
    text = str(answer).strip()
    if isinstance(answer, int) and not isinstance(answer, bool) and answer < len(options):
        return ascii_uppercase[answer]
    bare = re.fullmatch(r"[(\[]?([A-Za-z])[)\].:]?", text)
    for candidate in (text.upper(), bare[1].upper() if bare else text.upper()):
        if candidate in labels:
            return ascii_uppercase[labels.index(candidate)]
    if bare and not labels:
        return bare[1].upper()
    if text in options:
        return ascii_uppercase[options.index(text)]
    raise DataError(f"{where} has the answer '{text[:40]}', which is none of its options")

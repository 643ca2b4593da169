"""Columns of the dataset for teachers: the name of each row's teacher, and the prompts that only the teacher reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vopd.data.conversations import Asked
from vopd.data.tokenized import PROMPT_IDS, TEACHER_PROMPT_IDS, Tokenize, drawn_ids, highest_ids
from vopd.errors import DataError
from vopd.models import vocabulary_size

DEFAULT = "default"


class Routes:
    """The teachers' names in order, and the column that names one for each row.

    Args:
        names: names of the teachers; with a single one nothing is routed.
        column: column of the dataset. Rows that are empty there go to the teacher called "default".
    """

    def __init__(self, names: Sequence[str], column: str) -> None:
        self.names = list(names)
        self.column = column

    def check(self, dataset: Any, name: str) -> None:
        """Raises DataError if a row of `dataset`, called `name`, names an unknown teacher."""
        if len(self.names) == 1:
            return
        if self.column not in dataset.column_names:
            raise DataError(
                f"{name} has no column '{self.column}' that names each row's teacher, one of {', '.join(self.names)}; "
                "add it, or set teacher_column to another column"
            )
        for row, teacher in enumerate(dataset[self.column]):
            if (teacher or DEFAULT) not in self.names:
                wrong = f"names the teacher {teacher!r}" if teacher else "names no teacher, and there is no default"
                raise DataError(f"row {row} of {name} {wrong}; choose one of {', '.join(self.names)}")

    def of(self, dataset: Any) -> list[str]:
        """The name of each row's teacher."""
        if len(self.names) == 1 or self.column not in dataset.column_names:
            return self.names[:1] * len(dataset)
        return [teacher or DEFAULT for teacher in dataset[self.column]]

    def places(self, rows: Sequence[dict[str, Any]]) -> list[int] | None:
        """Index of each row's teacher among the names; None if there is only one."""
        if len(self.names) == 1:
            return None
        return [self.names.index(row[self.column] or DEFAULT) for row in rows]


def check_readers(
    dataset: Any, name: str, tokenizer: Any, student: int, teachers: Mapping[str, int], routes: Routes
) -> None:
    """Check that student and teachers have an embedding of every token that they read in a prompt.

    Args:
        dataset: with the ids of its prompts, see `add_ids`.
        name: its name in errors.
        tokenizer: the student's.
        student: number of ids that the student has embeddings of.
        teachers: number of ids that each teacher shares with the student, by the teacher's name.
        routes: which teacher reads which row.

    Raises:
        DataError: a prompt has another token.
    """
    if min([student, *teachers.values()]) >= vocabulary_size(tokenizer):
        return
    own = TEACHER_PROMPT_IDS if TEACHER_PROMPT_IDS in dataset.column_names else PROMPT_IDS
    limits = [teachers.get(teacher, student) for teacher in routes.of(dataset)]
    for reader, column, known in (("student", PROMPT_IDS, [student] * len(limits)), ("teacher", own, limits)):
        for row, (token, limit) in enumerate(zip(highest_ids(dataset, column), known, strict=True)):
            if token >= limit:
                other = ", or give the teacher prompts of its own with teacher_prompt_column"
                raise DataError(
                    f"row {row} of {name}: the {reader}'s prompt has the token "
                    f"{tokenizer.convert_ids_to_tokens(token)!r} (id {token}), which the {reader} does not have; leave "
                    f"it out of the prompt (text, chat template){other if reader == 'teacher' else ''}"
                )


class TeacherPrompts:
    """Prompts for the teacher only: with a hint, a reference solution, or another system prompt.

    Args:
        column: column of the dataset; None if the teacher reads the student's prompts. In rows that are empty there
            the teacher reads the student's prompt.
        in_template: whether texts get the chat template too, and may then stand beside conversations.
    """

    def __init__(self, column: str | None, in_template: bool = False) -> None:
        self.column = column
        self.in_template = in_template

    @classmethod
    def of(cls, settings: Any) -> TeacherPrompts:
        """With the settings of a VOPDConfig."""
        return cls(settings.teacher_prompt_column, settings.chat_template)

    def check(self, dataset: Any, name: str) -> None:
        """Raises DataError unless `dataset` has the column, with prompts as text or as chat messages."""
        if self.column is None:
            return
        if self.column not in dataset.column_names:
            raise DataError(
                f"{name} has no column '{self.column}', which teacher_prompt_column names; choose one of "
                f"{', '.join(dataset.column_names)}"
            )
        prompts = dataset[self.column]
        for row, (prompt, own) in enumerate(zip(prompts, dataset["prompt"], strict=True)):
            if prompt and not self.in_template and not isinstance(prompt, type(own)):
                raise DataError(
                    f"row {row} of {name}: '{self.column}' is {type(prompt).__name__}, but the student's prompt is "
                    f"{type(own).__name__}; give both in one form, or set chat_template=true"
                )
        if not any(prompts):
            raise DataError(f"'{self.column}' of {name} is empty in every row; fill it or remove teacher_prompt_column")

    def padded(
        self, rows: Sequence[dict[str, Any]], tokenize: Tokenize, padding: int
    ) -> tuple[list[list[int]], list[list[int]]] | None:
        """The teacher's prompts of `rows`: (N, P') ids and mask, padded on the left with `padding`; None without."""
        if self.column is None:
            return None
        found = drawn_ids(rows, TEACHER_PROMPT_IDS) or tokenize(
            [Asked.of(row, row[self.column] or row["prompt"]) for row in rows]
        )
        width = max(map(len, found))
        ids = [[padding] * (width - len(prompt)) + prompt for prompt in found]
        return ids, [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in found]

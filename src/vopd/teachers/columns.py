"""Columns of the data set that concern teachers: which one each row names, and what it reads before the completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vopd.data.tokenized import TEACHER_PROMPT_IDS, Tokenize, drawn_ids
from vopd.errors import DataError

DEFAULT = "default"


class Routes:
    """The teachers' names in order, and the column that names one for each row.

    Args:
        names: of the teachers; with one alone nothing is routed.
        column: of the data set. A row that holds nothing there goes to the teacher called "default".
    """

    def __init__(self, names: Sequence[str], column: str) -> None:
        self.names = list(names)
        self.column = column

    def check(self, dataset: Any, name: str) -> None:
        """Raises DataError if a row of `dataset`, called `name`, names no teacher that there is."""
        if len(self.names) == 1:
            return
        if self.column not in dataset.column_names:
            raise DataError(
                f"{name} has no column '{self.column}' that names each row's teacher, one of {', '.join(self.names)}; "
                "add it, or name another column with teacher_column"
            )
        for row, teacher in enumerate(dataset[self.column]):
            if (teacher or DEFAULT) not in self.names:
                wrong = f"names the teacher {teacher!r}" if teacher else "names no teacher, and there is no default"
                raise DataError(f"row {row} of {name} {wrong}; there are {', '.join(self.names)}")

    def places(self, rows: Sequence[dict[str, Any]]) -> list[int] | None:
        """The place of each row's teacher among the names; None where there is one alone."""
        if len(self.names) == 1:
            return None
        return [self.names.index(row[self.column] or DEFAULT) for row in rows]


class TeacherPrompts:
    """Prompts that the teacher alone reads: a hint, a reference solution, another system prompt.

    Args:
        column: of the data set; None where the teacher reads what the student reads. A row that holds nothing there has
            the student's prompt.
    """

    def __init__(self, column: str | None) -> None:
        self.column = column

    def check(self, dataset: Any, name: str) -> None:
        """Raises DataError unless `dataset` has the column, with prompts in it: texts, or lists of chat messages."""
        if self.column is None:
            return
        if self.column not in dataset.column_names:
            raise DataError(
                f"{name} has no column '{self.column}', which teacher_prompt_column names; it has "
                f"{', '.join(dataset.column_names)}"
            )
        prompts = dataset[self.column]
        for row, (prompt, own) in enumerate(zip(prompts, dataset["prompt"], strict=True)):
            if prompt and not isinstance(prompt, type(own)):
                raise DataError(
                    f"row {row} of {name}: '{self.column}' is {type(prompt).__name__}, and the student's prompt "
                    f"{type(own).__name__}; give both as text or both as chat messages"
                )
        if not any(prompts):
            raise DataError(f"'{self.column}' of {name} holds nothing in any row; remove teacher_prompt_column")

    def padded(
        self, rows: Sequence[dict[str, Any]], tokenize: Tokenize, padding: int
    ) -> tuple[list[list[int]], list[list[int]]] | None:
        """The teacher's prompts of `rows`: (N, P') ids and mask, padded on the left with `padding`; None without."""
        if self.column is None:
            return None
        found = drawn_ids(rows, TEACHER_PROMPT_IDS) or tokenize([row[self.column] or row["prompt"] for row in rows])
        width = max(map(len, found))
        ids = [[padding] * (width - len(prompt)) + prompt for prompt in found]
        return ids, [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in found]

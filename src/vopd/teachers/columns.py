"""Which teacher each row of the data names, and what it reads before the completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vopd.data.tokenized import TEACHER_PROMPT_IDS, Tokenize, drawn_ids
from vopd.errors import ConfigurationError, DataError

DEFAULT = "default"
PLACES = "teacher_places"
PROMPT_IDS = "teacher_prompt_ids"
PROMPT_MASK = "teacher_prompt_mask"


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

    def add(self, rows: Sequence[dict[str, Any]], batch: dict[str, Any]) -> None:
        """Put the place of each row's teacher into a generated batch, (N,)."""
        if len(self.names) == 1:
            return
        places = [self.names.index(row[self.column] or DEFAULT) for row in rows]
        batch[PLACES] = torch.tensor(places, device=batch["completion_ids"].device)


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

    def add(self, rows: Sequence[dict[str, Any]], batch: dict[str, Any], tokenize: Tokenize, padding: int) -> None:
        """Put the teacher's prompts into a generated batch, (N, P') ids and mask, padded on the left with `padding`."""
        if self.column is None:
            return
        found = drawn_ids(rows, TEACHER_PROMPT_IDS) or tokenize([row[self.column] or row["prompt"] for row in rows])
        width, like = max(map(len, found)), batch["prompt_ids"]
        ids = [[padding] * (width - len(prompt)) + prompt for prompt in found]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in found]
        batch[PROMPT_IDS] = torch.tensor(ids, dtype=like.dtype, device=like.device)
        batch[PROMPT_MASK] = torch.tensor(mask, dtype=batch["prompt_mask"].dtype, device=like.device)


@dataclass(frozen=True)
class Served:
    """A teacher behind a server.

    Attributes:
        urls: its address, or several of the same model.
        path: where its tokenizer and end tokens are, to be compared; None where the server alone is asked.
    """

    urls: Any
    path: str | None = None


def sources(teacher_model: Any, teachers: Any, server_url: Any = None) -> dict[str, Any]:
    """Every teacher by name: those of `teachers`, and `teacher_model` or the one at `server_url` as the default.

    Raises:
        ConfigurationError: there is none, or two defaults.
    """
    if teachers is not None and not (isinstance(teachers, dict) and all(isinstance(name, str) for name in teachers)):
        raise ConfigurationError(f"teachers must be a mapping of names to teachers, not {type(teachers).__name__}")
    named = {name: Served(source) if _is_url(source) else source for name, source in (teachers or {}).items()}
    default = _default(teacher_model, server_url)
    if default is not None:
        if DEFAULT in named:
            raise ConfigurationError("teacher_model is the default teacher, and teachers has another default; keep one")
        named[DEFAULT] = default
    if not named:
        raise ConfigurationError(
            "teacher_model is missing; give a path, a hub id or a model, teacher_server_url for one behind a server, "
            "or several as teachers"
        )
    for name, source in named.items():
        if not name or "/" in name or source is None:
            raise ConfigurationError(f"teachers: {name!r}: {source!r} is no name with a teacher; write name: path")
    return named


def _default(teacher_model: Any, server_url: Any) -> Any:
    if server_url is None:
        return teacher_model
    if teacher_model is not None and not isinstance(teacher_model, str):
        raise ConfigurationError(
            "teacher_model is a model and teacher_server_url names another teacher; remove one of them, or give the "
            "teacher's path, whose tokenizer is then compared"
        )
    return Served(server_url, teacher_model)


def _is_url(source: Any) -> bool:
    return isinstance(source, str) and source.startswith(("http://", "https://"))

"""Token ids of prompts, computed once and stored in the dataset for all later steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .sources import with_column

Tokenize = Callable[[list[Any]], list[list[int]]]

PROMPT = "prompt"
# With an underscore, so that no dataset has such a column by chance.
PROMPT_IDS = "_prompt_ids"
TEACHER_PROMPT_IDS = "_teacher_prompt_ids"
_CHUNK = 1000


def text_tokenizer(tokenizer: Any) -> Tokenize:
    """Return a function that tokenizes prompt texts with the arguments that TRL uses."""
    return lambda texts: list(tokenizer(text=texts)["input_ids"])


def add_ids(dataset: Any, tokenize: Tokenize, teacher_column: str | None = None) -> Any:
    """Return `dataset` with the ids of its prompts, and those of the teacher's prompts if `teacher_column` is given.

    Existing ids are kept if those of the first prompt equal the output of `tokenize`; otherwise they belong to another
    tokenizer or to prompts that have changed. A row without a value in `teacher_column` gets the student's prompt. With
    a transform, ids are not passed on: its output is tokenized when a row is read.
    """
    found = dataset
    if not _has(found, PROMPT_IDS, PROMPT, tokenize):
        found = with_column(found, PROMPT_IDS, _written(found[PROMPT], tokenize))
    if teacher_column is not None and not _has(found, TEACHER_PROMPT_IDS, teacher_column, tokenize):
        own, prompts = _column(found, PROMPT_IDS), list(found[teacher_column])
        its = iter(_written(filter(None, prompts), tokenize))
        ids = [next(its) if prompt else ids for prompt, ids in zip(prompts, own, strict=True)]
        found = with_column(found, TEACHER_PROMPT_IDS, ids)
    transform = dataset.format["format_kwargs"].get("transform")
    return found if transform is None else found.with_transform(transform, dataset.format["columns"])


def without_ids(dataset: Any) -> Any:
    """Return `dataset` without the columns of `add_ids`."""
    return dataset.remove_columns([name for name in (PROMPT_IDS, TEACHER_PROMPT_IDS) if name in dataset.column_names])


def token_lengths(dataset: Any, column: str = PROMPT_IDS) -> list[int]:
    """Return the number of tokens in every prompt."""
    return [len(ids.split()) for ids in _column(dataset, column)]


def highest_ids(dataset: Any, column: str = PROMPT_IDS) -> list[int]:
    """Return the highest id in every prompt."""
    return [max(_ids(ids), default=0) for ids in _column(dataset, column)]


def first_ids(dataset: Any, column: str = PROMPT_IDS) -> list[int]:
    """Return the ids of the first prompt."""
    return _ids(_column(dataset, column)[0])


def drawn_ids(rows: Sequence[Mapping[str, Any]], column: str = PROMPT_IDS) -> list[list[int]] | None:
    """Return the ids of rows of a dataset; None if it has none, such as an evaluation dataset."""
    return [_ids(row[column]) for row in rows] if column in rows[0] else None


def _has(data: Any, ids: str, column: str, tokenize: Tokenize) -> bool:
    return ids in data.column_names and tokenize([data[column][0] or data[PROMPT][0]]) == [first_ids(data, ids)]


def _written(prompts: Iterable[Any], tokenize: Tokenize) -> list[str]:
    """Ids as a text such as "5 17 3": `datasets` and accelerate process lists entry by entry, which takes seconds."""
    given = list(prompts)
    chunks = (tokenize(given[start : start + _CHUNK]) for start in range(0, len(given), _CHUNK))
    return [" ".join(map(str, ids)) for chunk in chunks for ids in chunk]


def _ids(written: str) -> list[int]:
    return [*map(int, written.split())]


def _column(dataset: Any, name: str) -> Any:
    return dataset.with_format(None)[name]  # a format set by the user applies to the user's columns

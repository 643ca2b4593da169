"""Prompts with their token ids, made once: what follows, up to the last step, reads them from the data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .sources import with_column

Tokenize = Callable[[list[Any]], list[list[int]]]

PROMPT = "prompt"
# Underscored, so that no data set has them by chance.
PROMPT_IDS = "_prompt_ids"
TEACHER_PROMPT_IDS = "_teacher_prompt_ids"
_CHUNK = 1000


def text_tokenizer(tokenizer: Any) -> Tokenize:
    """Return what gives the ids of prompts that are texts, with the arguments that TRL gives."""
    return lambda texts: list(tokenizer(text=texts)["input_ids"])


def add_ids(dataset: Any, tokenize: Tokenize, teacher_column: str | None = None) -> Any:
    """Return `dataset` with the ids of its prompts, and of what the teacher reads where `teacher_column` is given.

    Ids that are there stay if those of the first prompt are what `tokenize` gives: others are of another tokenizer, or
    of prompts that were changed. A row that holds nothing in `teacher_column` has the student's prompt. A transform of
    the data set does not hand the ids on: what it writes at every draw is tokenised then.
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
    """Return `dataset` as it was before `add_ids`."""
    return dataset.remove_columns([name for name in (PROMPT_IDS, TEACHER_PROMPT_IDS) if name in dataset.column_names])


def token_lengths(dataset: Any, column: str = PROMPT_IDS) -> list[int]:
    """Return the number of tokens of every prompt."""
    return [len(ids.split()) for ids in _column(dataset, column)]


def first_ids(dataset: Any, column: str = PROMPT_IDS) -> list[int]:
    """Return the ids of the first prompt."""
    return _ids(_column(dataset, column)[0])


def drawn_ids(rows: Sequence[Mapping[str, Any]], column: str = PROMPT_IDS) -> list[list[int]] | None:
    """Return the ids of rows drawn from a data set; None where it has none, as one that is evaluated on in between."""
    return [_ids(row[column]) for row in rows] if column in rows[0] else None


def _has(data: Any, ids: str, column: str, tokenize: Tokenize) -> bool:
    return ids in data.column_names and tokenize([data[column][0] or data[PROMPT][0]]) == [first_ids(data, ids)]


def _written(prompts: Iterable[Any], tokenize: Tokenize) -> list[str]:
    """Ids as a text such as "5 17 3": `datasets` and accelerate go through lists entry by entry, for seconds."""
    given = list(prompts)
    chunks = (tokenize(given[start : start + _CHUNK]) for start in range(0, len(given), _CHUNK))
    return [" ".join(map(str, ids)) for chunk in chunks for ids in chunk]


def _ids(written: str) -> list[int]:
    return [*map(int, written.split())]


def _column(dataset: Any, name: str) -> Any:
    return dataset.with_format(None)[name]  # a format that the user set is for the columns of the user

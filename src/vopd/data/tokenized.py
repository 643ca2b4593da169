"""Token ids of prompts, computed once and stored in the dataset for all later steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vopd.errors import DataError

from .chat import PromptError
from .conversations import OPTIONS, TOOLS, Asked
from .sources import with_column

Tokenize = Callable[[list[Any]], list[list[int]]]

PROMPT = "prompt"
# With an underscore, so that no dataset has such a column by chance.
PROMPT_IDS = "_prompt_ids"
TEACHER_PROMPT_IDS = "_teacher_prompt_ids"
_CHUNK = 1000


def add_ids(dataset: Any, tokenize: Tokenize, teacher_column: str | None = None, name: str = "the data") -> Any:
    """Return `dataset` with the ids of its prompts, and those of the teacher's prompts if `teacher_column` is given.

    Existing ids are kept if those of the first prompt equal the output of `tokenize`; otherwise they belong to another
    tokenizer or to prompts that have changed. A row without a value in `teacher_column` gets the student's prompt. With
    a transform, ids are not passed on: its output is tokenized when a row is read.

    Args:
        dataset: with a column "prompt".
        tokenize: such as `Chat.ids`.
        teacher_column: the column of the teacher's prompts.
        name: of the dataset in errors.

    Raises:
        DataError: a prompt cannot be tokenized; names the row.
    """
    found, place = dataset, row_of(name)
    if not has_ids(found, tokenize):
        found = with_column(found, PROMPT_IDS, written_ids(asked(found, PROMPT), tokenize, place))
    if teacher_column is not None and not has_ids(found, tokenize, TEACHER_PROMPT_IDS, teacher_column):
        prompts, own = asked(found, teacher_column), _column(found, PROMPT_IDS)
        found = with_column(found, TEACHER_PROMPT_IDS, written_ids(prompts, tokenize, place, own))
    transform = dataset.format["format_kwargs"].get("transform")
    return found if transform is None else found.with_transform(transform, dataset.format["columns"])


def row_of(name: str) -> Callable[[int], str]:
    """Return what says where a row of a dataset of this name is, for errors."""
    return lambda index: f"row {index} of {name}"


def written_ids(
    prompts: Sequence[Any], tokenize: Tokenize, place: Callable[[int], str], instead: Sequence[str] = ()
) -> list[str]:
    """Ids as texts such as "5 17 3": `datasets` and accelerate process lists entry by entry, which takes seconds.

    Args:
        prompts: those of a dataset; a row without one gets its ids in `instead`.
        tokenize: as in `add_ids`.
        place: where the prompt of an index is, for errors.
        instead: ids as texts.

    Raises:
        DataError: a prompt cannot be tokenized; names the row.
    """
    given = [index for index, prompt in enumerate(prompts) if _there(prompt)]
    written = list(instead) or [""] * len(prompts)
    for start in range(0, len(given), _CHUNK):
        chunk = given[start : start + _CHUNK]
        try:
            found = tokenize([prompts[index] for index in chunk])
        except PromptError as error:
            raise DataError(f"{place(chunk[error.index])}: {error}") from error
        for index, ids in zip(chunk, found, strict=True):
            written[index] = " ".join(map(str, ids))
    return written


def asked(data: Any, column: str) -> list[Any]:
    """The prompts of a dataset in one of its columns, with the tools and arguments of their rows if there are any."""
    prompts = list(data[column][:])
    beside = [data[name][:] if name in data.column_names else [None] * len(prompts) for name in (TOOLS, OPTIONS)]
    rows = zip(prompts, *beside, strict=True)
    return [Asked(*row) if any(row[1:]) else row[0] for row in rows]


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
    return _ids(_column(dataset.select([0]), column)[0])


def prompt_ids(dataset: Any, column: str = PROMPT_IDS) -> list[list[int]]:
    """Return the ids of all prompts."""
    return [_ids(written) for written in _column(dataset, column)]


def drawn_ids(rows: Sequence[Mapping[str, Any]], column: str = PROMPT_IDS) -> list[list[int]] | None:
    """Return the ids of rows of a dataset; None if it has none, such as an evaluation dataset."""
    return [_ids(row[column]) for row in rows] if column in rows[0] else None


def has_ids(data: Any, tokenize: Tokenize, ids: str = PROMPT_IDS, column: str = PROMPT) -> bool:
    """Whether `data` has the ids of its prompts, which are those of its first prompt now."""
    if ids not in data.column_names:
        return False
    first = data.select([0])
    (prompt,) = asked(first, column)
    return tokenize([prompt] if _there(prompt) else asked(first, PROMPT)) == [first_ids(data, ids)]


def _there(prompt: Any) -> bool:
    return bool(prompt.prompt if isinstance(prompt, Asked) else prompt)


def _ids(written: str) -> list[int]:
    return [*map(int, written.split())]


def _column(dataset: Any, name: str) -> list[Any]:
    # All at once: the entries of a lazy column are read one by one, which takes a hundred times as long.
    return list(dataset.with_format(None)[name][:])  # a format set by the user applies to the user's columns

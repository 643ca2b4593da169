"""Checks the training prompts before the first step; prompts that are too long are dropped, never truncated."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from vopd.errors import ConfigurationError, DataError, counted

from .tokenized import PROMPT, PROMPT_IDS, TEACHER_PROMPT_IDS, token_lengths

logger = logging.getLogger(__name__)


def check_dataset(dataset: Any, name: str = "train_dataset") -> None:
    """Raise DataError unless `dataset` is a dataset of texts with rows; `settled` reads the prompts."""
    if dataset is None:
        raise DataError(f"{name} is missing; pass a dataset with a column {PROMPT!r}")
    check_no_stream(dataset, name)
    columns = getattr(dataset, "column_names", None)
    if columns is None:
        raise DataError(
            f"{name} is a {type(dataset).__name__}; pass a datasets.Dataset, such as Dataset.from_list(rows)"
        )
    if len(dataset) == 0:
        raise DataError(f"{name} is empty")
    if {"image", "images"} & set(columns):
        raise DataError(f"{name} has images, which are not supported; remove the column or use TRL's trainer")
    if dataset.format["type"] == "custom" and PROMPT not in dataset[:1]:
        raise DataError(f"the transform of {name} returns no column {PROMPT!r}; add one to what it returns")


def check_no_stream(dataset: Any, name: str) -> None:
    """Raise DataError if a dataset has no length."""
    if not hasattr(dataset, "__len__") and isinstance(dataset, Iterable):
        raise DataError(
            f"{name} is a stream: its prompts cannot be counted, checked before the run, or found again on resume; "
            "load it with streaming=False, or take a part of it: Dataset.from_list(list(stream.take(1000)))"
        )


def keep_short(dataset: Any, limit: int | None, name: str = "train_dataset") -> Any:
    """Drop the rows whose prompt has more than `limit` tokens, with a warning; `dataset` must have ids.

    A prompt is never truncated: without its beginning it is another problem, without its end it has lost its question.

    Raises:
        DataError: no row is left.
    """
    if limit is None:
        return dataset
    lengths = token_lengths(dataset)
    kept = [row for row, length in enumerate(lengths) if length <= limit]
    if not kept:
        raise DataError(
            f"every prompt of {name} has more than {counted(limit, 'token')}, the shortest has {min(lengths)}; raise "
            "max_prompt_length"
        )
    dropped = len(lengths) - len(kept)
    if dropped:
        long = "dropped %d of %d prompts of %s with more than max_prompt_length=%d tokens"
        logger.warning(long, dropped, len(lengths), name, limit)
    return dataset.select(kept) if dropped else dataset


def check_room(
    dataset: Any, name: str, positions: int | None, completion: int, teacher_column: str | None = None
) -> None:
    """Check that every prompt plus `completion` tokens fits into the `positions` of the models.

    Rotary embeddings would silently continue to positions that the models were never trained on.

    Raises:
        ConfigurationError: not even a prompt of one token fits.
        DataError: a prompt of `dataset`, which must have ids, does not fit; or one in its `teacher_column`.
    """
    if positions is None:
        return
    room = positions - completion
    if room < 1:
        raise ConfigurationError(
            f"max_completion_length={completion} leaves no room for a prompt in the models' {positions} positions; "
            "set a smaller one"
        )
    beyond = f"exceed the models' {positions} positions with max_completion_length={completion}"
    columns = {PROMPT_IDS: ("prompts", f"set max_prompt_length={room} to drop them")}
    if teacher_column is not None:
        columns[TEACHER_PROMPT_IDS] = (f"prompts in '{teacher_column}'", f"shorten them to {counted(room, 'token')}")
    for column, (what, instead) in columns.items():
        lengths = token_lengths(dataset, column)
        if long := sum(length > room for length in lengths):
            raise DataError(
                f"{long} of {len(lengths)} {what} of {name} {beyond}, the longest has {counted(max(lengths), 'token')}"
                f"; {instead}, or lower max_completion_length"
            )


def check_enough(num_prompts: int, batch_size: int) -> None:
    """Raise DataError if the prompts do not fill one generation batch: nothing would be trained."""
    if num_prompts < batch_size:
        raise DataError(
            f"{counted(num_prompts, 'prompt')} cannot fill one step of {batch_size}; add prompts, or lower "
            "per_device_train_batch_size or gradient_accumulation_steps"
        )


def each(eval_dataset: Any, change: Callable[[Any, str], Any]) -> Any:
    """`eval_dataset`, one or several by name or none, with `change(dataset, name for error messages)` of each."""
    if isinstance(eval_dataset, dict):
        return {name: change(dataset, f"eval_dataset[{name!r}]") for name, dataset in eval_dataset.items()}
    return None if eval_dataset is None else change(eval_dataset, "eval_dataset")

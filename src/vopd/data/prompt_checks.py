"""The training prompts: checked before the first step, dropped whole if too long, never cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vopd.errors import ConfigurationError, DataError

PROMPT = "prompt"
_CHUNK = 1000


def check_prompts(dataset: Any, name: str = "train_dataset") -> None:
    """Raises DataError unless every row has a prompt: a text, or a list of chat messages."""
    if dataset is None:
        raise DataError(f"{name} is missing; give a data set with a column {PROMPT!r}")
    if not hasattr(dataset, "__len__"):
        raise DataError(f"{name} is a stream, whose order cannot be restored on resume; load it with streaming=False")
    columns = getattr(dataset, "column_names", None)
    if columns is None:
        raise DataError(f"{name} is a {type(dataset).__name__}; give a datasets.Dataset, from_list makes one of rows")
    if len(dataset) == 0:
        raise DataError(f"{name} is empty")
    if {"image", "images"} & set(columns):
        raise DataError(f"{name} has images, which are not supported; remove the column or use TRL's trainer")
    if PROMPT not in columns:
        raise DataError(f"{name} has no column {PROMPT!r}; it has {', '.join(map(repr, columns))}")
    for row, prompt in enumerate(dataset[PROMPT]):
        problem = _problem(prompt)
        if problem:
            raise DataError(f"row {row} of {name}: the prompt {problem}")


def _problem(prompt: Any) -> str | None:
    if isinstance(prompt, str):
        return None if prompt else "is empty"
    if not isinstance(prompt, list):
        return f"is neither a text nor a list of chat messages, but {type(prompt).__name__}"
    if not prompt:
        return "is empty"
    if not all(isinstance(message, dict) and {"role", "content"} <= message.keys() for message in prompt):
        return "is a list whose entries are not all chat messages with 'role' and 'content'"
    return None


def keep_short(dataset: Any, limit: int | None, tokenize: Callable[[list[Any]], list[list[int]]]) -> tuple[Any, int]:
    """The rows of `dataset` whose prompt has at most `limit` tokens, and how many were dropped.

    A prompt is never cut: without its beginning it is another problem.

    Raises:
        DataError: none is left.
    """
    if limit is None:
        return dataset, 0
    lengths = token_lengths(dataset, tokenize)
    kept = [row for row, length in enumerate(lengths) if length <= limit]
    if not kept:
        raise DataError(
            f"all {len(lengths)} prompts are longer than max_prompt_length={limit} tokens; "
            f"the shortest has {min(lengths)}"
        )
    dropped = len(lengths) - len(kept)
    return (dataset.select(kept) if dropped else dataset), dropped


def check_room(
    dataset: Any,
    name: str,
    positions: int | None,
    completion: int,
    tokenize: Callable[[list[Any]], list[list[int]]],
    column: str = PROMPT,
) -> None:
    """Raises if a prompt with `completion` more tokens goes beyond the `positions` that the models know.

    Rotary positions would go on without a word, in a region that the models never saw.

    Raises:
        ConfigurationError: not even a prompt of one token has room.
        DataError: a prompt of `dataset` has none.
    """
    if positions is None:
        return
    room = positions - completion
    if room < 1:
        raise ConfigurationError(
            f"max_completion_length={completion} leaves no room for a prompt in the models' {positions} positions; "
            "lower it"
        )
    lengths = token_lengths(dataset, tokenize, column)
    long = sum(length > room for length in lengths)
    if long and column != PROMPT:
        raise DataError(
            f"{long} prompts in '{column}' of {name} go beyond the models' {positions} positions with "
            f"max_completion_length={completion}; shorten them to {room} tokens, or lower max_completion_length"
        )
    if long:
        raise DataError(
            f"{long} of {len(lengths)} prompts of {name} go beyond the models' {positions} positions with "
            f"max_completion_length={completion}, the longest has {max(lengths)} tokens; set max_prompt_length={room} "
            "to leave them out, or lower max_completion_length"
        )


def token_lengths(dataset: Any, tokenize: Callable[[list[Any]], list[list[int]]], column: str = PROMPT) -> list[int]:
    """Number of tokens of each prompt that there is in `column`."""
    prompts = [prompt for prompt in dataset[column] if prompt]
    return [len(ids) for start in range(0, len(prompts), _CHUNK) for ids in tokenize(prompts[start : start + _CHUNK])]


def check_enough(num_prompts: int, batch_size: int) -> None:
    """Raises DataError if the prompts do not fill one generation batch: nothing would be trained."""
    if num_prompts < batch_size:
        raise DataError(
            f"{num_prompts} prompts are fewer than one step takes ({batch_size}); give more prompts, or lower "
            "per_device_train_batch_size or gradient_accumulation_steps"
        )

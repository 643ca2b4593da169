from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from vopd.data.prompt_checks import check_enough, check_prompts, keep_short
from vopd.data.tokenized import add_ids
from vopd.errors import DataError


def rows(*prompts: Any) -> Dataset:
    return Dataset.from_dict({"prompt": list(prompts)})


def test_texts_and_messages_pass() -> None:
    check_prompts(rows("a", "same", "same", "\x1b[31m\x00 split \ud83d".encode("utf-8", "replace").decode()))
    check_prompts(rows([{"role": "user", "content": "a"}]))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (None, "train_dataset is missing"),
        (rows(), "train_dataset is empty"),
        (Dataset.from_dict({"question": ["a"]}), "no column 'prompt'; it has 'question'"),
        (rows("a", ""), "row 1 of train_dataset: the prompt is empty"),
        (rows("a", None), "row 1 .* neither a text nor"),
        (rows(3), "row 0 .* but int"),
        (rows([{"text": "a"}]), "not all chat messages"),
        (rows([]), "row 0 .* is empty"),
        ([{"prompt": "a"}], "is a list; give a datasets.Dataset"),
        (Dataset.from_dict({"prompt": ["a"], "image": [None]}), "has images"),
        (rows("a").to_iterable_dataset(), "is a stream"),
    ],
)
def test_bad_data_is_refused(dataset: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        check_prompts(dataset)
    assert raised.value.exit_code == 3


def by_letters(prompts: list[str]) -> list[list[int]]:
    return [[0] * len(prompt) for prompt in prompts]


def test_long_prompts_are_dropped_whole_and_counted() -> None:
    kept, dropped = keep_short(add_ids(rows("abcd", "abc", "abcde", "a"), by_letters), 3)
    assert kept["prompt"][:] == ["abc", "a"] and dropped == 2
    kept, dropped = keep_short(add_ids(rows("abcd", "abc"), by_letters), 4)  # exactly the limit is not over it
    assert len(kept) == 2 and dropped == 0
    data = rows("abcd")
    assert keep_short(data, None) == (data, 0)


def test_it_is_an_error_if_none_is_left() -> None:
    with pytest.raises(DataError, match="every prompt of train_dataset has more than 2 tokens, the shortest 3; raise"):
        keep_short(add_ids(rows("abcd", "abc"), by_letters), 2)


def test_too_few_prompts_for_one_step() -> None:
    check_enough(8, 8)
    with pytest.raises(DataError, match="7 prompts are fewer than one step takes"):
        check_enough(7, 8)

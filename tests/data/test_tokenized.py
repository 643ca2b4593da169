"""Ids beside the prompts: made once, the same as the tokenizer's, and nobody else's business."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from vopd.data.chat import Chat
from vopd.data.tokenized import (
    PROMPT_IDS,
    TEACHER_PROMPT_IDS,
    add_ids,
    drawn_ids,
    first_ids,
    token_lengths,
    without_ids,
)

PROMPTS = ["How many legs?", "a", "two dogs \N{GRINNING FACE}"]
HINTS = [None, "a hint", ""]


def as_rows(dataset: Dataset) -> list[dict[str, Any]]:
    return dataset.__getitems__(list(range(len(dataset))))


def test_ids_are_the_tokenizers_and_empty_teacher_prompts_are_the_students(tiny_tokenizer: Any) -> None:
    plain = Dataset.from_dict({"prompt": PROMPTS, "hint": HINTS})
    dataset = add_ids(plain, Chat(tiny_tokenizer).ids, "hint")
    own, its = (tiny_tokenizer(texts)["input_ids"] for texts in (PROMPTS, [PROMPTS[0], "a hint", PROMPTS[2]]))
    assert drawn_ids(as_rows(dataset)) == own and first_ids(dataset) == own[0]
    assert drawn_ids(as_rows(dataset), TEACHER_PROMPT_IDS) == its
    assert token_lengths(dataset) == [*map(len, own)]
    assert token_lengths(dataset, TEACHER_PROMPT_IDS) == [*map(len, its)]
    assert without_ids(dataset).to_list() == plain.to_list()
    assert drawn_ids(as_rows(plain)) is None


def test_ids_that_are_there_stay_and_go_with_their_rows() -> None:
    seen: list[str] = []

    def tokenize(prompts: list[str]) -> list[list[int]]:
        seen.extend(prompts)
        return [[*prompt.encode()] for prompt in prompts]

    plain = Dataset.from_dict({"prompt": PROMPTS, "hint": HINTS})
    first = add_ids(plain, tokenize).select([2, 1])
    dataset = add_ids(add_ids(first, tokenize, "hint"), tokenize, "hint")
    tried = PROMPTS[2]  # the first prompt, of each column once there are ids
    assert seen == [*PROMPTS, tried, "a hint", tried, tried]
    assert first_ids(dataset) == [*PROMPTS[2].encode()]
    assert drawn_ids(as_rows(dataset), TEACHER_PROMPT_IDS) == [[*PROMPTS[2].encode()], [*b"a hint"]]


def test_ids_of_other_prompts_or_another_tokenizer_are_made_anew() -> None:
    def tokenize(prompts: list[str]) -> list[list[int]]:
        return [[*prompt.encode()] for prompt in prompts]

    first = add_ids(Dataset.from_dict({"prompt": PROMPTS, "hint": PROMPTS, "other": ["b", "c", "d"]}), tokenize, "hint")
    changed = add_ids(first.map(lambda row: {"prompt": row["prompt"] + "!"}), tokenize)
    assert drawn_ids(as_rows(changed)) == tokenize([text + "!" for text in PROMPTS])
    other = add_ids(first, lambda prompts: [[len(prompt)] for prompt in prompts], "other")
    assert drawn_ids(as_rows(other)) == [[len(text)] for text in PROMPTS]
    assert drawn_ids(as_rows(other), TEACHER_PROMPT_IDS) == [[1], [1], [1]]


def test_what_a_transform_writes_is_tokenised_when_it_is_drawn() -> None:
    def shout(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return rows | {"prompt": [text.upper() for text in rows["prompt"]]}

    plain = Dataset.from_dict({"prompt": PROMPTS}).with_transform(shout)
    dataset = add_ids(plain, lambda prompts: [[len(prompt)] for prompt in prompts])
    assert as_rows(dataset) == as_rows(plain) and drawn_ids(as_rows(dataset)) is None
    assert token_lengths(dataset) == [1, 1, 1]


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_format_of_the_users_stays_and_does_no_harm(kind: str) -> None:
    plain = Dataset.from_dict({"prompt": PROMPTS, "answer": [1, 2, 3]}).with_format(kind)
    dataset = add_ids(plain, lambda prompts: [[*prompt.encode()] for prompt in prompts])
    assert type(dataset[0]["answer"]) is type(plain[0]["answer"])
    assert drawn_ids([dataset[1]]) == [[*b"a"]] and token_lengths(dataset)[1] == 1


def test_large_ids_survive() -> None:
    dataset = add_ids(Dataset.from_dict({"prompt": ["a"]}), lambda prompts: [[0, 255, 256, 262_143, 2**31 - 1]])
    assert dataset.column_names == ["prompt", PROMPT_IDS]
    assert first_ids(dataset) == [0, 255, 256, 262_143, 2**31 - 1]


def test_rows_in_another_order() -> None:
    shuffled = Dataset.from_dict({"prompt": PROMPTS}).select([2, 0, 1])
    dataset = add_ids(shuffled, lambda prompts: [[len(prompt)] for prompt in prompts])
    assert token_lengths(dataset) == [1, 1, 1] and first_ids(dataset) == [len(PROMPTS[2])]

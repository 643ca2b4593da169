from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from messages import says
from vopd.data.prompt_checks import check_enough, keep_short
from vopd.data.prompts import settled
from vopd.data.tokenized import add_ids
from vopd.errors import DataError


def rows(*prompts: Any) -> Dataset:
    return Dataset.from_dict({"prompt": list(prompts)})


def check_prompts(dataset: Any) -> None:
    """As VOPDTrainer does."""
    settled(dataset, "train_dataset")


def test_texts_and_messages_pass() -> None:
    check_prompts(rows("a", "same", "same", "\x1b[31m\x00 split \ud83d".encode("utf-8", "replace").decode()))
    check_prompts(rows([{"role": "user", "content": "a"}]))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (None, "train_dataset ... missing"),
        (rows(), "train_dataset ... empty"),
        (Dataset.from_dict({"text": ["a"]}), "train_dataset ... prompt ... it has: text"),
        (
            Dataset.from_dict({"question": ["a"]}).with_transform(lambda rows: rows),
            "transform of train_dataset ... prompt",
        ),
        (rows("a", ""), "row 1 of train_dataset ... empty"),
        (rows("a", None), "row 1 ... prompt ... missing"),
        (rows(3), "row 0 ... int"),
        (rows([{"text": "a"}]), "row 0 ... chat messages"),
        (rows([]), "row 0 ... empty"),
        ([{"prompt": "a"}], "list ... datasets.Dataset"),
        (Dataset.from_dict({"prompt": ["a"], "image": [None]}), "images"),
        (rows("a").to_iterable_dataset(), "stream"),
    ],
)
def test_bad_data_is_refused(dataset: Any, message: str) -> None:
    with pytest.raises(DataError, match=says(message)) as raised:
        check_prompts(dataset)
    assert raised.value.exit_code == 3


def by_letters(prompts: list[str]) -> list[list[int]]:
    return [[0] * len(prompt) for prompt in prompts]


def test_long_prompts_are_dropped_whole_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    kept = keep_short(add_ids(rows("abcd", "abc", "abcde", "a"), by_letters), 3)
    assert kept["prompt"][:] == ["abc", "a"] and "dropped 2 of 4 prompts" in caplog.text
    caplog.clear()
    assert len(keep_short(add_ids(rows("abcd", "abc"), by_letters), 4)) == 2  # exactly the limit is not over it
    data = rows("abcd")
    assert keep_short(data, None) is data and not caplog.text


def test_it_is_an_error_if_none_is_left() -> None:
    with pytest.raises(DataError, match=says("every prompt of train_dataset ... 2 tokens ... 3 ... max_prompt_length")):
        keep_short(add_ids(rows("abcd", "abc"), by_letters), 2)


def test_too_few_prompts_for_one_step() -> None:
    check_enough(8, 8)
    with pytest.raises(DataError, match=says("7 prompts ... 8")):
        check_enough(7, 8)


CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("hinted", [False, True])
def test_each_prompt_is_tokenised_once_before_the_first_step_and_never_again(
    chat: bool, hinted: bool, make_trainer: Callable[..., Any], tiny_student_dir: Path, tokenized: Counter[str]
) -> None:
    from transformers import AutoTokenizer

    def prompt(text: str) -> Any:
        return [{"role": "user", "content": text}] if chat else text

    def rendered(text: str) -> str:
        return f"<user>{text}<assistant>" if chat else text

    tokenizer = AutoTokenizer.from_pretrained(tiny_student_dir)
    tokenizer.model_input_names, tokenizer.chat_template = ["input_ids", "attention_mask"], CHAT
    held_out = Dataset.from_dict({"prompt": [prompt("held out")], "hint": [prompt("held hint")]})
    columns = {"prompt": [prompt(f"prompt {n}") for n in range(8)]}
    columns["hint"] = [prompt(f"hint {n}") if n % 2 else None for n in range(8)]
    trainer = make_trainer(
        max_prompt_length=60,
        max_steps=8,  # two epochs
        eval_strategy="steps",
        eval_steps=4,
        teacher_prompt_column="hint" if hinted else None,
        trainer={
            "train_dataset": Dataset.from_dict(columns),
            "eval_dataset": {"some": held_out},
            "processing_class": tokenizer,
        },
    )
    texts = [*(f"prompt {n}" for n in range(8)), "held out"]
    texts += [*(f"hint {n}" for n in range(1, 8, 2)), "held hint"] if hinted else []
    once = Counter(map(rendered, texts))
    assert {text: tokenized[text] for text in once} == once
    tokenized.clear()
    trainer.train()
    assert not tokenized
    # Rows that the trainer has not seen before are tokenised when they are drawn.
    rows = {"prompt": [prompt("new"), prompt("newer")], "hint": [None, prompt("new hint")]}
    trainer.evaluate(Dataset.from_dict(rows))
    assert set(tokenized) == {rendered("new"), rendered("newer"), *([rendered("new hint")] if hinted else [])}


def test_the_rollout_continues_the_ids_of_the_rows_it_was_drawn_for(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(max_steps=3, gradient_accumulation_steps=2, num_train_epochs=2)
    given: list[list[int]] = []
    generate = trainer._generate_single_turn

    def recording(prompt_ids: Any, *rest: Any) -> Any:
        given.extend(prompt_ids)
        return generate(prompt_ids, *rest)

    trainer._generate_single_turn = recording
    trainer.train()
    drawn = [trainer.train_dataset[row]["prompt"] for row in list(trainer._get_train_sampler())]
    first = [text for start in range(0, 24, 8) for text in drawn[start : start + 4]]  # each batch comes twice
    assert given == trainer.tokenize(first)


def test_the_order_is_that_of_the_batch_size_when_training_begins(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer()
    trainer.args.gradient_accumulation_steps = 2
    order = list(trainer._get_train_sampler())
    assert order[:4] == order[4:8] and len(set(order[:4])) == 4


def test_reward_functions_see_no_column_of_ours(make_trainer: Callable[..., Any]) -> None:
    seen: set[str] = set()

    def reward(completions: Any, **columns: Any) -> list[float]:
        seen.update(columns)
        return [1.0] * len(completions)

    data = Dataset.from_dict({"prompt": ["a"] * 4, "hint": ["b"] * 4, "level": [1] * 4})
    make_trainer(
        num_generations=2,
        teacher_prompt_column="hint",
        max_steps=1,
        trainer={"train_dataset": data, "reward_funcs": reward},
    ).train()
    assert seen == {"prompts", "completion_ids", "trainer_state", "hint", "level"}


def test_a_path_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says("train_dataset ... pass a datasets.Dataset")):
        check_prompts(tmp_path / "prompts.jsonl")

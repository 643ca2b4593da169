from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from vopd.data.prompts import fill_template, load_prompts, read_rows
from vopd.errors import ConfigurationError, DataError


@pytest.fixture
def write(tmp_path: Path):
    def write_rows(rows: list[Any], name: str = "prompts.jsonl") -> Path:
        path = tmp_path / name
        if path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif path.suffix == ".json":
            path.write_text(json.dumps(rows))
        else:
            import datasets

            datasets.Dataset.from_list(rows).to_parquet(path)
        return path

    return write_rows


ROWS = [{"prompt": "1 + 1 =", "answer": "2"}, {"prompt": "2 + 3 =", "answer": "5"}]


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.parquet"])
def test_reads_every_kind_of_file_and_carries_columns(write, name: str) -> None:
    dataset = load_prompts(write(ROWS, name))
    assert dataset.to_list() == [{"answer": row["answer"], "prompt": row["prompt"]} for row in ROWS]


@pytest.mark.parametrize("column", ["problem", "question"])
def test_other_names_of_the_prompt_column(write, column: str) -> None:
    dataset = load_prompts(write([{column: "1 + 1 ="}]))
    assert dataset[0] == {column: "1 + 1 =", "prompt": "1 + 1 ="}


def test_rows_may_have_different_columns(write) -> None:
    dataset = load_prompts(write([{"prompt": "a"}, {"prompt": "b", "level": 3}]))
    assert dataset["level"][:] == [None, 3]


def test_blank_lines_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}\n')
    assert load_prompts(path)["prompt"][:] == ["a", "b"]


def test_control_characters_and_line_separators_are_kept(write) -> None:
    odd = "nul \x00, escape \x1b[31m, separator \u2028, emoji 🐔"
    assert load_prompts(write([{"prompt": odd}]))[0]["prompt"] == odd


class TestTemplate:
    def test_fills_columns_and_leaves_lone_braces(self, write) -> None:
        dataset = load_prompts(write([{"problem": "1+1"}]), template="{problem}\nUse \\boxed{} and { x }.")
        assert dataset[0]["prompt"] == "1+1\nUse \\boxed{} and { x }."

    def test_replaces_a_prompt_column(self, write) -> None:
        assert load_prompts(write(ROWS), template="Q: {prompt}")[1]["prompt"] == "Q: 2 + 3 ="

    def test_braces_inside_a_value_are_not_filled_again(self) -> None:
        assert fill_template("{a}", {"a": "{b}", "b": "x"}) == "{b}"

    @pytest.mark.parametrize(
        ("template", "message"),
        [
            ("{text}", r"names \{text\}, which is no column; the columns are prompt, answer"),
            ("x", "no column"),
        ],
    )
    def test_wrong_template(self, write, template: str, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            load_prompts(write(ROWS), template=template)

    def test_column_without_text(self, write) -> None:
        with pytest.raises(DataError, match="row 1: column 'level' is NoneType and not text"):
            load_prompts(write([{"level": "a"}, {"other": "b"}]), template="{level}")


class TestClearErrors:
    @pytest.mark.parametrize("name", ["none.jsonl", "none.json", "none.parquet"])
    def test_missing_file(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(DataError, match=f"there is no file .*{name}"):
            load_prompts(tmp_path / name)

    def test_bad_json_has_its_line(self, tmp_path: Path) -> None:
        path = tmp_path / "p.jsonl"
        path.write_text('{"prompt": "a"}\n\n{"prompt": "b",}\n')
        with pytest.raises(DataError, match=r"p\.jsonl' line 3 is not valid JSON"):
            load_prompts(path)

    def test_line_that_is_no_object(self, write) -> None:
        with pytest.raises(DataError, match="line 2 must be an object .* not list"):
            load_prompts(write([{"prompt": "a"}, ["b"]]))

    def test_broken_json_file(self, tmp_path: Path) -> None:
        (tmp_path / "p.json").write_text("[{]")
        with pytest.raises(DataError, match="not valid JSON.*line 1, column 3"):
            load_prompts(tmp_path / "p.json")

    def test_json_file_that_is_no_list(self, tmp_path: Path) -> None:
        (tmp_path / "p.json").write_text('{"prompt": "a"}')
        with pytest.raises(DataError, match="list of objects"):
            load_prompts(tmp_path / "p.json")

    def test_broken_parquet(self, tmp_path: Path) -> None:
        (tmp_path / "p.parquet").write_text("no parquet")
        with pytest.raises(DataError, match="not a readable parquet"):
            load_prompts(tmp_path / "p.parquet")

    def test_not_text(self, tmp_path: Path) -> None:
        (tmp_path / "p.jsonl").write_bytes(b'{"prompt": "\xff"}')
        with pytest.raises(DataError, match="not UTF-8"):
            load_prompts(tmp_path / "p.jsonl")

    def test_other_kind_of_file(self, tmp_path: Path) -> None:
        (tmp_path / "p.csv").write_text("prompt\na")
        with pytest.raises(DataError, match=r"use \.jsonl, \.json or \.parquet"):
            load_prompts(tmp_path / "p.csv")

    def test_missing_column_names_those_present(self, write) -> None:
        with pytest.raises(DataError, match="it has: text, answer"):
            load_prompts(write([{"text": "a", "answer": "b"}]))

    @pytest.mark.parametrize(("value", "kind"), [(5, "int"), (None, "NoneType"), ([1], "list")])
    def test_field_that_is_no_text_has_its_row(self, write, value: Any, kind: str) -> None:
        rows = [{"prompt": value}, {"prompt": value}]
        with pytest.raises(DataError, match=f"row 0: the prompt is {kind} and not text"):
            load_prompts(write(rows))

    def test_missing_prompt_in_one_row(self, write) -> None:
        with pytest.raises(DataError, match="row 1: the prompt is NoneType"):
            load_prompts(write([{"prompt": "a"}, {"answer": "b"}]))

    def test_column_of_mixed_kinds(self, write) -> None:
        with pytest.raises(DataError, match="mixes kinds of values"):
            load_prompts(write([{"prompt": "a", "x": 1}, {"prompt": "b", "x": "one"}]))

    def test_empty_prompt(self, write) -> None:
        with pytest.raises(DataError, match="row 1: the prompt is empty"):
            load_prompts(write([{"prompt": "a"}, {"prompt": " \n"}]))

    @pytest.mark.parametrize("name", ["p.jsonl", "p.json"])
    def test_empty_data_set(self, write, name: str) -> None:
        with pytest.raises(DataError, match="has no rows"):
            load_prompts(write([], name))

    def test_half_an_emoji(self, write) -> None:
        with pytest.raises(DataError, match="row 1 holds half a character"):
            load_prompts(write([{"prompt": "a"}, {"prompt": "b \ud83d"}]))

    def test_unreachable_hub_data_set(self) -> None:
        with pytest.raises(DataError, match="cannot load 'nobody/no-such-set'.*reasoning_gym:NAME"):
            load_prompts("nobody/no-such-set")


def test_count_keeps_the_first_rows(write) -> None:
    assert load_prompts(write(ROWS), count=1)["prompt"][:] == ["1 + 1 ="]
    with pytest.raises(ConfigurationError, match="count"):
        load_prompts(write(ROWS), count=0)


def test_duplicates_are_kept_and_counted(write, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(load_prompts(write([*ROWS, ROWS[0], ROWS[0]]))) == 4
    assert "2 of 4 prompts" in caplog.text and "repeats" in caplog.text


class TestLength:
    def test_long_prompts_are_dropped_whole_and_counted(
        self, write, tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = write([{"prompt": "xq" * 10}, *ROWS])
        with caplog.at_level(logging.WARNING):
            dataset = load_prompts(path, tokenizer=tiny_tokenizer, max_prompt_length=19)
        assert dataset["prompt"][:] == [row["prompt"] for row in ROWS]
        assert "dropped 1 of 3 prompts" in caplog.text

    def test_the_limit_itself_is_allowed(self, write, tiny_tokenizer: Any) -> None:
        assert len(load_prompts(write([{"prompt": "xqxq"}]), tokenizer=tiny_tokenizer, max_prompt_length=4)) == 1

    def test_all_too_long(self, write, tiny_tokenizer: Any) -> None:
        with pytest.raises(DataError, match="more than 1 tokens, the shortest"):
            load_prompts(write(ROWS), tokenizer=tiny_tokenizer, max_prompt_length=1)

    def test_needs_a_tokenizer(self, write) -> None:
        with pytest.raises(ConfigurationError, match="needs a tokenizer"):
            load_prompts(write(ROWS), max_prompt_length=5)


class ChatTokenizer:
    chat_template = "there is one"
    bos_token, bos_token_id = "<s>", 1

    def __init__(self, adds_begin: bool) -> None:
        self.adds_begin = adds_begin

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [1, 9] if self.adds_begin else [9]}

    def apply_chat_template(self, turns: list[dict[str, str]], **options: Any) -> str:
        assert options["add_generation_prompt"] and not options["tokenize"]
        think = "<think>" if options.get("enable_thinking") else ""
        return "<s>" + "".join(f"[{turn['role']}]{turn['content']}" for turn in turns) + "[assistant]" + think


class TestChatTemplate:
    def test_text_becomes_the_users_turn(self, write) -> None:
        dataset = load_prompts(
            write(ROWS),
            tokenizer=ChatTokenizer(False),
            chat_template=True,
            chat_options={"enable_thinking": True},
        )
        assert dataset[0]["prompt"] == "<s>[user]1 + 1 =[assistant]<think>"

    def test_the_begin_token_does_not_come_twice(self, write) -> None:
        dataset = load_prompts(write(ROWS), tokenizer=ChatTokenizer(True), chat_template=True)
        assert dataset[0]["prompt"] == "[user]1 + 1 =[assistant]"

    def test_conversations_are_rendered_only_when_asked(self, write) -> None:
        turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
        path = write([{"prompt": turns}])
        with pytest.raises(DataError, match="row 0: the prompt is a conversation; set chat_template"):
            load_prompts(path)
        dataset = load_prompts(path, tokenizer=ChatTokenizer(True), chat_template=True)
        assert dataset[0]["prompt"] == "[system]be brief[user]hi[assistant]"

    def test_tokenizer_without_template(self, write, tiny_tokenizer: Any) -> None:
        with pytest.raises(ConfigurationError, match="no chat template"):
            load_prompts(write(ROWS), tokenizer=tiny_tokenizer, chat_template=True)


def test_reasoning_gym_task() -> None:
    pytest.importorskip("vopd.data.reasoning")
    dataset = load_prompts("reasoning_gym:chain_sum", count=5, seed=3, options={"min_terms": 2, "max_terms": 2})
    again = load_prompts("reasoning_gym:chain_sum", count=5, seed=3, options={"min_terms": 2, "max_terms": 2})
    assert len(dataset) == 5 and dataset.to_list() == again.to_list()
    assert {"prompt", "answer", "task", "metadata"} == set(dataset.column_names)
    with pytest.raises(ConfigurationError, match="no_such_task"):
        load_prompts("reasoning_gym:no_such_task")


def test_read_rows_gives_plain_dictionaries(write) -> None:
    assert read_rows(write(ROWS)) == ROWS

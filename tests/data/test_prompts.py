from __future__ import annotations

import json
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from messages import says, told
from vopd.data.local_data import local_rows
from vopd.data.mixture import most_without_repeats, shares
from vopd.data.prompt_columns import fill_template
from vopd.data.prompts import read_prompts
from vopd.errors import ConfigurationError, DataError


def load_prompts(source: Any, **settings: Any) -> Any:
    return read_prompts(source, **settings).dataset


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
            ("{text}", "{text} ... prompt, answer"),
            ("x", "column"),
        ],
    )
    def test_wrong_template(self, write, template: str, message: str) -> None:
        with pytest.raises(ConfigurationError, match=says(message)):
            load_prompts(write(ROWS), template=template)

    def test_column_without_text(self, write) -> None:
        with pytest.raises(DataError, match=says("line 2 ... 'level' ... NoneType ... text")):
            load_prompts(write([{"level": "a"}, {"other": "b"}]), template="{level}")


class TestClearErrors:
    @pytest.mark.parametrize("name", ["none.jsonl", "none.json", "none.parquet"])
    def test_missing_file(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(DataError, match=says(f"no file ... {name}")):
            load_prompts(tmp_path / name)

    def test_bad_json_has_its_line(self, tmp_path: Path) -> None:
        path = tmp_path / "p.jsonl"
        path.write_text('{"prompt": "a"}\n\n{"prompt": "b",}\n')
        with pytest.raises(DataError, match=says("p.jsonl ... line 3 ... JSON")):
            load_prompts(path)

    def test_line_that_is_no_object(self, write) -> None:
        with pytest.raises(DataError, match=says("line 2 ... object ... list")):
            load_prompts(write([{"prompt": "a"}, ["b"]]))

    def test_broken_json_file(self, tmp_path: Path) -> None:
        (tmp_path / "p.json").write_text("[{]")
        with pytest.raises(DataError, match=says("JSON ... line 1, column 3")):
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
        (tmp_path / "p.txt").write_text("prompt\na")
        with pytest.raises(DataError, match=says("p.txt ... unsupported ... .jsonl")):
            load_prompts(tmp_path / "p.txt")

    def test_missing_column_names_those_present(self, write) -> None:
        with pytest.raises(DataError, match=says("prompt ... text, answer")):
            load_prompts(write([{"text": "a", "answer": "b"}]))

    @pytest.mark.parametrize(("value", "kind"), [(5, "int ... text"), (None, "missing"), ([1], "list ... text")])
    def test_field_that_is_no_text_has_its_row(self, write, value: Any, kind: str) -> None:
        rows = [{"prompt": value}, {"prompt": value}]
        with pytest.raises(DataError, match=says(f"line 1, column 'prompt' ... {kind}")):
            load_prompts(write(rows))

    def test_missing_prompt_in_one_row(self, write) -> None:
        with pytest.raises(DataError, match=says("line 2, column 'prompt' ... missing")):
            load_prompts(write([{"prompt": "a"}, {"answer": "b"}]))

    def test_nothing_but_empty_prompts(self, write) -> None:
        with pytest.raises(DataError, match=says("every prompt ... empty")):
            load_prompts(write([{"prompt": ""}, {"prompt": " \n"}]))

    def test_a_directory_or_a_long_path_is_not_taken_for_a_hub_id(self) -> None:
        with pytest.raises(DataError, match=says("no file '/data/none'")):
            load_prompts("/data/none")

    def test_options_of_a_file(self, write) -> None:
        with pytest.raises(ConfigurationError, match=says("option 'name' ... prompts.jsonl ... field")):
            load_prompts(write(ROWS), options={"name": "x"})

    @pytest.mark.parametrize("name", ["p.jsonl", "p.json"])
    def test_empty_data_set(self, write, name: str) -> None:
        with pytest.raises(DataError, match=says("no rows")):
            load_prompts(write([], name))

    def test_half_an_emoji(self, write) -> None:
        with pytest.raises(DataError, match=says("line 2 ... unpaired surrogate")):
            load_prompts(write([{"prompt": "a"}, {"prompt": "b \ud83d"}]))

    def test_unreachable_hub_data_set(self) -> None:
        with pytest.raises(DataError, match=says("'nobody/no-such-set' ... reasoning_gym:NAME")):
            load_prompts("nobody/no-such-set")


def test_count_keeps_the_first_rows(write) -> None:
    assert load_prompts(write(ROWS), count=1)["prompt"][:] == ["1 + 1 ="]
    with pytest.raises(ConfigurationError, match="count"):
        load_prompts(write(ROWS), count=0)


def test_duplicates_are_kept_and_counted(write, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(load_prompts(write([*ROWS, ROWS[0], ROWS[0]]))) == 4
    assert told("repeated prompts ... 2 of 4", caplog.text)


class TestEmpty:
    def test_empty_prompts_are_dropped_and_counted(self, write, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            dataset = load_prompts(write([ROWS[0], {"prompt": " \n", "answer": "0"}, ROWS[1]]))
        assert dataset["prompt"][:] == ["1 + 1 =", "2 + 3 ="] and dataset["answer"][:] == ["2", "5"]
        assert told("empty prompts ... dropped ... 1 of 3, first row 1", caplog.text)

    def test_a_template_does_not_hide_an_empty_problem(self, write) -> None:
        dataset = load_prompts(write([{"problem": ""}, {"problem": "a"}]), template="{problem} Step by step.")
        assert dataset["prompt"][:] == ["a Step by step."]

    def test_one_empty_column_of_two_is_no_empty_prompt(self, write) -> None:
        rows = [{"problem": "a", "hint": ""}]
        assert load_prompts(write(rows), template="{problem}{hint}")["prompt"][:] == ["a"]


class TestMixture:
    @pytest.fixture
    def files(self, write) -> tuple[str, str]:
        first = write([{"prompt": f"a{n}", "answer": n, "level": 1} for n in range(20)], "a.jsonl")
        second = write([{"problem": f"b{n}", "answer": str(n), "level": "x"} for n in range(30)], "b.parquet")
        return str(first), str(second)

    def test_weights_are_proportions_and_nothing_is_repeated(self, files: tuple[str, str]) -> None:
        a, b = files
        mixed = load_prompts([{"source": a, "weight": 2}, {"source": b, "weight": 1}])
        texts = mixed["prompt"][:]
        assert len(texts) == len(set(texts)) == 30
        assert Counter(text[0] for text in texts) == {"a": 20, "b": 10}
        # Evenly spread: any six in a row hold four of the one and two of the other, give or take one.
        assert all(3 <= "".join(texts[n : n + 6]).count("a") <= 5 for n in range(24))

    def test_answers_are_carried_as_text_and_rows_know_their_source(
        self, files: tuple[str, str], caplog: pytest.LogCaptureFixture
    ) -> None:
        a, b = files
        with caplog.at_level(logging.INFO):
            mixed = load_prompts([a, b], count=4)
        assert [(row["prompt"], row["answer"], row["source"]) for row in mixed] == [
            ("a0", "0", a), ("b0", "0", b), ("a1", "1", a), ("b1", "1", b),
        ]  # fmt: skip
        assert [row["level"] for row in mixed] == ["1", "x", "1", "x"] and told("'level' ... text", caplog.text)

    def test_a_task_makes_as_many_as_its_weight_asks(self, files: tuple[str, str]) -> None:
        prompts = read_prompts([
            {"source": "reasoning_gym:chain_sum", "weight": 3, "options": {"max_terms": 3}},
            {"source": files[0], "template": "Q: {prompt}"},
        ])  # fmt: skip
        assert [entry["prompts"] for entry in prompts.sources] == [60, 20]
        assert prompts.sources[0]["version"].endswith("seed 0")
        assert sum(text.startswith("Q: a") for text in prompts.dataset["prompt"]) == 20

    def test_only_tasks(self) -> None:
        mixed = load_prompts(["reasoning_gym:chain_sum", "reasoning_gym:leg_counting"], count=7)
        assert Counter(mixed["task"]) == {"chain_sum": 4, "leg_counting": 3}

    @pytest.mark.parametrize(
        ("sources", "settings", "message"),
        [
            ([{"source": "A", "weight": 0}, "B"], {}, "weight ... positive ... 0"),
            ([{"source": "A", "weigth": 2}, "B"], {}, "'weigth' ... 'weight'"),
            ([{"weight": 2}, "B"], {}, "text ... {source:"),
            ([], {}, "sources ... empty"),
            (["A", "B"], {"options": {"a": 1}}, "options ... source"),
            (["A", "B"], {"count": 50}, "20 prompts ... weight ... 25 ... max_prompts"),
            ([{"source": "A", "weight": 1000}, "B"], {"count": 5}, "no share ... 5 prompts"),
            (["A", "none.jsonl"], {}, "no file 'none.jsonl'"),
        ],
    )
    def test_refusals(self, files: Any, sources: list[Any], settings: dict[str, Any], message: str) -> None:
        names = dict(zip("AB", files))
        given = [
            {**entry, "source": names[entry["source"]]} if isinstance(entry, dict) and "source" in entry
            else names.get(entry, entry) if isinstance(entry, str) else entry
            for entry in sources
        ]  # fmt: skip
        with pytest.raises((ConfigurationError, DataError), match=says(message)):
            load_prompts(given, **settings)

    @pytest.mark.parametrize(
        ("weights", "total", "counts"), [([1, 1, 1], 10, [4, 3, 3]), ([2, 1], 30, [20, 10]), ([0.1, 0.9], 1, [0, 1])]
    )
    def test_shares_add_up(self, weights: list[float], total: int, counts: list[int]) -> None:
        assert shares(weights, total) == counts

    def test_rounding_never_asks_for_more_than_is_there(self) -> None:
        for sizes in ([1, 1, 1], [3, 7, 5], [10, 11, 13]):
            total = most_without_repeats([1, 2, 3], sizes)
            assert total is not None
            assert all(count <= size for count, size in zip(shares([1, 2, 3], total), sizes))
        assert most_without_repeats([1, 2], [None, None]) is None


def test_what_tells_the_version_of_the_data(write) -> None:
    path = write(ROWS)
    first = read_prompts(path).sources
    assert first == [{"source": str(path), "version": first[0]["version"], "prompts": 2}]
    assert re.fullmatch("sha256 [0-9a-f]{12}", first[0]["version"])
    write(ROWS[:1])
    assert read_prompts(path).sources[0]["version"] != first[0]["version"]


def test_reasoning_gym_task() -> None:
    pytest.importorskip("vopd.data.reasoning")
    dataset = load_prompts("reasoning_gym:chain_sum", count=5, seed=3, options={"min_terms": 2, "max_terms": 2})
    again = load_prompts("reasoning_gym:chain_sum", count=5, seed=3, options={"min_terms": 2, "max_terms": 2})
    assert len(dataset) == 5 and dataset.to_list() == again.to_list()
    assert {"prompt", "problem", "answer", "task", "metadata"} == set(dataset.column_names)
    with pytest.raises(ConfigurationError, match="no_such_task"):
        load_prompts("reasoning_gym:no_such_task")


def test_local_rows_are_plain_dictionaries(write) -> None:
    assert [row for _, row in local_rows(str(write(ROWS)))] == ROWS

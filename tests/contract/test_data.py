"""What a name of data stands for, that values arrive as they are written, and what is said of broken data."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import logging
import lzma
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from cases import Case, Place
from messages import says, told
from training.two_processes import SOURCES
from vopd.data.local_data import local_rows, row_place
from vopd.data.prompts import read_prompts
from vopd.data.sources import Source, load_rows
from vopd.errors import ConfigurationError, DataError
from vopd.evaluation.benchmarks import load_benchmark
from vopd.training.saving.contents import contents_of_file

A, B = '{"prompt": "a"}\n', '{"prompt": "b"}\n'
LIST = '[{"prompt": "a"}, {"prompt": "b"}]'
CSV = "prompt,answer\na,1\nb,2\n"
CARD = "---\nlicense: mit\n---\n# About\n"
CONFIGS = (
    "---\nconfigs:\n- config_name: en\n  data_files:\n  - split: train\n    path: en/*.jsonl\n"
    "- config_name: de\n  data_files: de/*.jsonl\n---\n"
)
WRONG = ConfigurationError
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def parquet(*prompts: Any) -> bytes:
    found = io.BytesIO()
    column = prompts[0] if isinstance(prompts[0], pa.Array) else list(prompts)
    pa.parquet.write_table(pa.table({"prompt": column}), found)
    return found.getvalue()


def twice() -> bytes:
    found = io.BytesIO()
    pa.parquet.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"]), found)
    return found.getvalue()


def ipc(kind: Callable[..., Any], *prompts: str) -> bytes:
    table, found = pa.table({"prompt": list(prompts)}), io.BytesIO()
    with kind(found, table.schema) as writer:
        writer.write_table(table)
    return found.getvalue()


def zstd(data: bytes) -> bytes:
    found = pa.BufferOutputStream()
    with pa.CompressedOutputStream(found, "zstd") as out:
        out.write(data)
    return found.getvalue().to_pybytes()


def save(path: Path, **splits: list[str]) -> None:
    """A dataset as `save_to_disk` writes it; a DatasetDict if there are several splits."""
    found = {name: datasets.Dataset.from_dict({"prompt": prompts}) for name, prompts in splits.items()}
    whole = datasets.DatasetDict(found) if len(found) > 1 else next(iter(found.values()))
    whole.save_to_disk(path)


@dataclass(frozen=True)
class Named:
    """Files, a name for some of them, and the prompts that it gives, or the facts of the error.

    Attributes:
        name: with "{}" for the folder; "": its one file.
        files: by name, the content; the splits of a saved dataset; or another name, for a link to it.
        gives: the prompts, or the error's facts.
        error: the error's type.
        settings: of `read_prompts`.
        logs: facts of a line that is logged.
    """

    files: Mapping[str, Any]
    gives: list[str] | str
    name: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    error: type[Exception] = DataError
    logs: str = ""

    def write(self, folder: Path) -> str:
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                path.symlink_to(content)
            elif content == {}:
                path.mkdir()
            elif isinstance(content, dict):
                save(path, **content)
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)
        return self.name.replace("{}", str(folder)) or str(folder / next(iter(self.files)))


def options(**given: Any) -> dict[str, Any]:
    return {"options": given}


NAMED = [
    # files of each kind
    Named({"p.jsonl": A + B}, ["a", "b"]),
    Named({"p.ndjson": A + B}, ["a", "b"]),
    Named({"P.JSONL": A + B}, ["a", "b"]),
    Named({"p.json": LIST}, ["a", "b"]),
    Named({"p.json": A + B}, ["a", "b"]),  # JSON lines under another name
    Named({"p.jsonl": LIST}, ["a", "b"]),  # and the other way round
    Named({"p.json": f'{{"version": 1, "data": {LIST}}}'}, ["a", "b"]),
    Named({"p.json": f'{{"old": {A}, "new": {LIST}, "more": {LIST}}}'}, ["a", "b"], settings=options(field="more")),
    Named({"p.csv": CSV}, ["a", "b"]),
    Named({"p.tsv": "prompt\tanswer\na, b\t1\n"}, ["a, b"]),
    Named({"p.csv": "prompt;answer\na, b;1\n"}, ["a, b"]),
    Named({"p.csv": "a|1\nb|2\n"}, ["a", "b"], settings=options(delimiter="|", column_names=["prompt", "answer"])),
    Named({"p.csv": '\ufeffprompt,answer\r\n"a\nb, ""c""",1\r\n\r\n'}, ['a\nb, "c"']),
    Named({"p.csv": ",prompt\n0,a\n1,b\n"}, ["a", "b"]),  # with the index of pandas
    Named({"p.csv": f'prompt\n"{"x" * 200_000}"\n'}, ["x" * 200_000]),
    Named({"p.csv": "prompt\ncafé\n".encode("latin-1")}, ["café"], settings=options(encoding="latin-1")),
    Named({"p.jsonl": A.encode("utf-16")}, ["a"], settings=options(encoding="utf-16")),
    Named({"p.parquet": parquet("a", "b")}, ["a", "b"]),
    Named({"p.arrow": ipc(pa.ipc.new_file, "a", "b")}, ["a", "b"]),
    Named({"p.arrow": ipc(pa.ipc.new_stream, "a", "b")}, ["a", "b"]),
    Named({"p.jsonl.gz": gzip.compress(A.encode())}, ["a"]),
    Named({"P.CSV.GZ": gzip.compress(CSV.encode())}, ["a", "b"]),
    Named({"p.parquet.gz": gzip.compress(parquet("a"))}, ["a"]),
    Named({"p.jsonl.bz2": bz2.compress(A.encode())}, ["a"]),
    Named({"p.jsonl.xz": lzma.compress(A.encode())}, ["a"]),
    Named({"p.jsonl.zst": zstd(A.encode())}, ["a"]),
    # several files
    Named({"2.jsonl": B, "1.jsonl": A, "x.csv": CSV}, ["a", "b"], "{}/*.jsonl"),
    Named({"1/x.jsonl": A, "2/y/x.jsonl": B}, ["a", "b"], "{}/**/*.jsonl"),
    Named({"a.parquet": parquet("a"), "b.parquet": parquet("b")}, ["a", "b"], "{}/?.parquet"),
    Named({"a [1].jsonl": A}, ["a"], "{}/a [1].jsonl"),  # a name with signs of a pattern
    Named({"split=train/a.jsonl": A}, ["a"], "{}/split=train/*.jsonl"),
    Named({"s/1.jsonl": A, "s/2.JSONL": B, "s/notes.txt": "x", "s/.x.jsonl": "{"}, ["a", "b"], "{}/s"),
    Named({"s[1]/train/1.jsonl": A, "s[1]/test/1.jsonl": B}, ["b"], "{}/s[1]", {"split": "test"}),
    Named({f"s/train-0000{n}-of-00002.parquet": parquet(text) for n, text in enumerate("ab")}, ["a", "b"], "{}/s"),
    Named({"s/train.csv": CSV, "s/test.csv": "prompt\nt\n"}, ["t"], "{}/s", {"split": "test"}),
    Named({"s/train.jsonl": A, "s/more.jsonl": B}, ["a"], "{}/s", logs="s ... not read ... more.jsonl"),
    Named({"s/train.jsonl": A, "s/test.jsonl": B}, "'validation' ... train, test ... dataset_split", "{}/s",
          {"split": "validation"}),
    # a downloaded hub dataset: a card, data/ and metadata; the snapshot in the hub's cache has links
    Named({"h/README.md": CARD, "h/data/train-00000-of-00001.parquet": parquet("a"), "h/dataset_infos.json": "{}",
           "h/.gitattributes": "x"}, ["a"], "{}/h"),
    Named({"blobs/abc": A, "snap/c1/data/train.jsonl": Path("../../../blobs/abc")}, ["a"], "{}/snap/c1"),
    Named({"h/README.md": CONFIGS, "h/en/x.jsonl": A, "h/de/y.jsonl": B}, ["b"], "{}/h", options(name="de")),
    Named({"h/README.md": CONFIGS, "h/en/x.jsonl": A, "h/de/y.jsonl": B}, "'en', 'de' ... dataset_options={name",
          "{}/h"),
    Named({"h/load.py": "raise SystemExit", "h/train.jsonl": A}, ["a"], "{}/h"),  # no code of a dataset is run
    # saved by `datasets`
    Named({"saved": {"train": ["a", "b"]}}, ["a", "b"]),
    Named({"dict": {"train": ["a"], "test": ["b"]}}, ["b"], settings={"split": "test"}),
    Named({"dict": {"train_sft": ["a"], "test_sft": ["b"]}},
          "dict ... 'train' ... train_sft, test_sft ... dataset_split"),
    Named({"saved": {"train": ["a"]}, "saved/state.json": "{"}, "saved ... cannot load ... save it again"),
    Named({"saved": {"train": ["a"]}, "saved/data-00000-of-00001.arrow": "x"}, "saved ... cannot load"),
    # nothing there
    Named({"p.jsonl": A}, "no file ... p.json ... 'p.jsonl'", "{}/p.json"),
    Named({"p.jsonl": A}, "no file matches ... *.csv", "{}/*.csv"),
    Named({"p.txt": "a"}, "p.txt ... unsupported ... .csv"),
    Named({"s/x.txt": "a", "s/README.md": CARD}, "folder ... no data files ... .csv", "{}/s"),
    Named({"s/x.jsonl": {}}, "x.jsonl ... no data files"),  # an empty folder
    Named({"h/README.md": CONFIGS, "h/de/y.jsonl": B}, "h ... (supported) data files", "{}/h", options(name="en")),
    Named({"s/a.jsonl": A, "s/b.csv": CSV}, "several kinds ... CSV, JSON ... *.jsonl'", "{}/s"),
    Named({}, "URL ... download", "https://example.org/p.jsonl"),
    Named({}, "URL ... id of a hub dataset", "hf://datasets/openai/gsm8k/train.parquet"),
    # options
    Named({"p.jsonl": A}, "'delimiter' ... p.jsonl ... field", settings=options(delimiter=";"), error=WRONG),
    Named({"p.csv": CSV}, "'delimeter' ... 'delimiter'", settings=options(delimeter=";"), error=WRONG),
    Named({"p.csv": CSV}, "p.csv ... delimiter ... 1-character", settings=options(delimiter="ab"), error=WRONG),
    Named({"p.csv": CSV}, "column_names ... list ... 'x'", settings=options(column_names="x"), error=WRONG),
    Named({"p.csv": CSV}, "encoding 'utf-7x'", settings=options(encoding="utf-7x"), error=WRONG),
    Named({"p.parquet": parquet("a")}, "'field' ... parquet", settings=options(field="x"), error=WRONG),
    Named({"saved": {"train": ["a"]}}, "'name' ... saved", settings=options(name="x"), error=WRONG),
    # broken files
    Named({"p.jsonl": A + "\n" + B[:-2]}, "p.jsonl ... line 3 ... not valid JSON ... column 15"),
    Named({"1.jsonl": A, "2.jsonl": B + "{"}, "2.jsonl ... line 2 ... not valid JSON", "{}/*.jsonl"),
    Named({"p.jsonl": A + "[1]\n"}, "line 2 ... object ... list"),
    Named({"s/1.jsonl": A, "s/2.jsonl": B + '\n{"prompt": []}'}, "2.jsonl ... line 3 ... 'prompt' ... empty", "{}/s"),
    Named({"p.json": '[{"prompt": "a"}, 5]'}, "p.json ... row 1 ... object ... int"),
    Named({"p.json": '[\n{"prompt": "a",}]'}, "p.json ... not valid JSON ... line 2, column 16"),
    Named({"p.json": '{"prompt": {"0": "a"}}'}, "p.json ... list of objects ... orient='records'"),
    Named({"p.json": f'{{"train": {LIST}, "test": {LIST}}}'}, "train, test ... dataset_options={field: train}"),
    Named({"p.json": f'{{"data": {LIST}}}'}, "'rows' ... data", settings=options(field="rows")),
    Named({"p.jsonl": '{"prompt": "a", "n": ' + "9" * 5000 + "}"}, "line 1 ... cannot be read ... 4300"),
    Named({"p.jsonl": '{"prompt": "a", "n": ' + "[" * 700 + "]" * 700 + "}"}, "p.jsonl ... nested too deeply"),
    Named({"p.jsonl": "[" * 100_000}, "p.jsonl ... cannot be read as JSON"),
    Named({"p.jsonl": A + '{"prompt": "a", "meta": {"x": ["\\uDE00"]}}\n'}, "line 2 ... surrogate ... 'meta'"),
    Named({"p.json": '[{"prompt": "\\ud83d"}]'}, "row 0 ... surrogate ... 'prompt' ... position 0"),
    Named({"p.jsonl": A.encode() + b'{"prompt": "\xe9"}'}, "line 2 ... UTF-8 ... byte 28 ... encoding: latin-1"),
    Named({"p.csv": "prompt\na\n".encode("utf-16")}, "line 1 ... UTF-8 ... encoding: utf-16"),
    Named({"p.jsonl": gzip.compress(A.encode())}, "packed with gzip ... p.jsonl.gz"),
    Named({"p.jsonl.gz": A}, "cannot unpack ... p.jsonl.gz"),
    Named({"p.jsonl.gz": gzip.compress(A.encode() * 99)[:-9]}, "cannot unpack ... incomplete"),
    Named({"p.csv.zst": CSV}, "cannot unpack ... p.csv.zst"),
    Named({"p.parquet": parquet("a")[:-9]}, "p.parquet ... not a readable parquet"),
    Named({"p.parquet": twice()}, "p.parquet ... two columns ... 'prompt'"),
    Named({"p.parquet": parquet(pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())))}, "p.parquet ... map<string"),
    Named({"p.arrow": "x"}, "p.arrow ... not a readable arrow"),
    Named({"a.parquet": parquet("a"), "b.parquet": parquet(1)},
          "b.parquet ... int64 ... 'prompt' ... a.parquet ... string", "{}/*.parquet"),
    Named({"p.jsonl": LFS}, "p.jsonl ... Git LFS ... git lfs pull"),
    Named({"s/train.parquet": LFS}, "train.parquet ... Git LFS", "{}/s"),
    Named({"p.csv": 'prompt,answer\na,1\n"b,2\n'}, "p.csv ... line 3 ... quote"),
    Named({"p.csv": "prompt,answer\na,1\nb, c,2\n"}, "line 3 ... 3 values ... 2 columns: prompt, answer"),
    Named({"p.csv": "prompt,answer\na,1,5\nb,2,5\n"}, "line 2 ... 3 values ... 2 columns"),
    Named({"p.csv": 'prompt,answer\n"a\nb",1\nc\n'}, "line 4 ... 1 value ... 2 columns"),
    Named({"p.csv": "prompt,answer,prompt \na,1,b\n"}, "line 1 ... 'prompt' twice"),
    *(Named({name: ""}, f"{name} ... no rows") for name in ("p.jsonl", "p.csv", "p.ndjson")),
    Named({"p.json": ""}, "p.json ... not valid JSON"),
    Named({"p.csv": "prompt,answer\n"}, "p.csv ... no rows"),
    Named({"p.parquet": ""}, "p.parquet ... not a readable parquet"),
]  # fmt: skip


def shown(case: Named) -> str:
    return f"{case.name or next(iter(case.files))}: {str(case.gives)[:50]}"


@pytest.mark.parametrize("case", NAMED, ids=shown)
def test_named(case: Named, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = case.write(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    if isinstance(case.gives, str):
        with pytest.raises((DataError, ConfigurationError), match=says(case.gives)) as caught:
            read_prompts(name, **case.settings)
        assert type(caught.value) is case.error and "\n" not in str(caught.value)
    else:
        prompts = read_prompts(name, **case.settings)
        assert prompts.dataset["prompt"][:] == case.gives
        assert told("sha256", prompts.sources[0]["version"]) or told("fingerprint", prompts.sources[0]["version"])
    assert told(case.logs, caplog.text)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


VALUES = {
    "date": ("2024-01-01", "2024-01-02T00:00:00Z"),
    "zeros": ("007", "12"),
    "missing": ("NA", "None"),
    "empty": ("", "null"),
    "number": (1, 2.5),
    "nothing": (None, float("inf")),
    "flag": (True, None),
    "turns": ([{"role": "user", "content": "5"}], [{"role": "assistant", "content": None, "tool_calls": []}]),
    "tools": ({"type": "object", "properties": {"b": {"default": 1}, "a": {"default": 0.5}}},
              {"type": "object", "properties": {"c": {"enum": ["x", None, 3]}}}),
    "same": ({"a": 1, "b": [1.5]}, {"a": 2, "b": []}),
    "order": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "void": ({}, {}),
    "either": ("12", ["12", None]),
    "numbers": ([1, 2], [3]),
}  # fmt: skip


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "*.jsonl"])
def test_values_of_json_are_as_they_are_written(tmp_path: Path, name: str) -> None:
    rows = [{"prompt": "x"} | {column: values[row] for column, values in VALUES.items()} for row in range(2)]
    if name == "p.json":
        (tmp_path / name).write_text(json.dumps(rows))
    elif name == "p.jsonl":
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    else:
        for number, row in enumerate(rows):
            (tmp_path / f"{number}.jsonl").write_text(json.dumps(row))
    found = load_rows(Source(str(tmp_path / name)), None, 0)[0]
    assert repr(found.to_list()) == repr([row | {"number": float(row["number"])} for row in rows])
    assert repr([row for _, row in local_rows(str(tmp_path / name))]) == repr(rows)


def test_values_of_csv_are_text_as_written(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('prompt,a,b,c,d\n 007,NA,1.0,,2024-01-01\n"True",null,1e3, x ,"""q"""\n')
    assert load_rows(Source(str(tmp_path / "p.csv")), None, 0)[0].to_list() == [
        {"prompt": " 007", "a": "NA", "b": "1.0", "c": "", "d": "2024-01-01"},
        {"prompt": "True", "a": "null", "b": "1e3", "c": " x ", "d": '"q"'},
    ]


@pytest.mark.parametrize(
    ("values", "becomes", "line"),
    [
        (["1.50", '"x"', "7", "null", "true"], ["1.50", "x", "7", None, "true"],
         "line 1 ... number ... line 2 ... text"),
        (["true", "1"], ["true", "1"], "line 1 ... true or false ... line 2 ... number"),
        (["1", str(10**40)], ["1", str(10**40)], "'answer' ... text ... line 2 ... too large"),
        ([str(2**63 - 1), "1"], [2**63 - 1, 1], ""),
        ([str(2**53 + 1), "2.5"], [str(2**53 + 1), "2.5"], "'answer' ... text ... line 1 ... too large"),
        (["1.50", "2"], [1.5, 2.0], ""),
        (['{"a": [1180591620717411303424]}', "null"], "line 1 ... beyond 64 bits ... 'answer' ... as text", ""),
        (["1", "[1180591620717411303424]"], "line 2 ... beyond 64 bits ... 'answer'", ""),
        (["1", None, "2"], [1, None, 2], ""),
    ],
)  # fmt: skip
def test_a_column_of_several_kinds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, values: list[str | None], becomes: Any, line: str
) -> None:
    lines = ['{"prompt": "x"}' if value is None else f'{{"prompt": "x", "answer": {value}}}' for value in values]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    with caplog.at_level(logging.INFO):
        if isinstance(becomes, str):
            with pytest.raises(DataError, match=says(becomes)):
                load_rows(Source(str(tmp_path / "p.jsonl")), None, 0)
        else:
            assert load_rows(Source(str(tmp_path / "p.jsonl")), None, 0)[0]["answer"][:] == becomes
    assert told(line, caplog.text) and bool(line) == bool(caplog.text)


def test_columns_of_several_sources(tmp_path: Path) -> None:
    """Numbers and text, text of two widths, and messages with and without tool calls."""
    first = [{"prompt": "a", "answer": 1.5, "wide": "x", "turns": [{"role": "user", "content": "a"}], "rest": None}]
    second = {
        "prompt": "b",
        "answer": "2",
        "wide": "y",
        "turns": [{"role": "tool", "content": "b", "name": "f"}],
        "rest": 1,
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(first[0]))
    pa.parquet.write_table(
        pa.Table.from_pylist([second]).set_column(2, "wide", pa.array(["y"], pa.large_string())), tmp_path / "b.parquet"
    )
    mixed = read_prompts([str(tmp_path / "a.jsonl"), str(tmp_path / "b.parquet")]).dataset
    assert [{**row, "source": None} for row in mixed] == [
        {**first[0], "answer": "1.5", "source": None}, {**second, "source": None},
    ]  # fmt: skip


def test_the_place_of_a_row_among_shards(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(A + "\n" + B)
    (tmp_path / "b.jsonl").write_text("\n" + A)
    pattern = str(tmp_path / "*.jsonl")
    assert [row_place(pattern, None, {}, index) for index in (1, 2)] == [
        f"'{tmp_path}/a.jsonl' line 3", f"'{tmp_path}/b.jsonl' line 2",
    ]  # fmt: skip
    (tmp_path / "p.parquet").write_bytes(parquet("a"))
    assert row_place(str(tmp_path / "p.parquet"), None, {}, 0) == f"'{tmp_path}/p.parquet' row 0"


def test_a_count_reads_no_further(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(A + B + "{")
    assert read_prompts(tmp_path / "p.jsonl", count=2).dataset["prompt"][:] == ["a", "b"]


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    """Of the same name, size and time."""
    path, versions = tmp_path / "p.parquet", set()
    for prompt in "ab":
        path.write_bytes(parquet(prompt))
        os.utime(path, (0, 0))
        found = read_prompts(tmp_path / "p.parquet")
        assert found.dataset["prompt"][:] == [prompt]
        versions.add((found.sources[0]["version"], contents_of_file(str(path))["content"]))
    assert len(versions) == 2


def test_the_version_is_that_of_all_shards(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(A)
    pattern = str(tmp_path / "*.jsonl")
    before = read_prompts(pattern, count=1).sources[0]["version"], contents_of_file(pattern)
    (tmp_path / "b.jsonl").write_text(B)
    assert before[0] != read_prompts(pattern, count=1).sources[0]["version"]
    assert before[1] != contents_of_file(pattern)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(CSV)
    (tmp_path / "p.csv").chmod(stat.S_IWUSR)
    with pytest.raises(DataError, match=says("cannot read ... p.csv ... permissions")):
        read_prompts(tmp_path / "p.csv")


def test_home_folder_and_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "p.jsonl").write_text(A)
    assert read_prompts("~/p.jsonl").dataset["prompt"][:] == ["a"]
    with pytest.raises(DataError, match=says("no file '~/q.jsonl' ... 'p.jsonl'")):
        read_prompts("~/q.jsonl")


def test_a_folder_here_is_never_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "saved", train=["a"])
    monkeypatch.chdir(tmp_path)
    assert not Source("saved").on_hub and Source("elsewhere").on_hub and Source("org/set").on_hub
    assert not Source("a/b/c").on_hub and not Source("a*").on_hub and not Source("s3://x/y").on_hub
    assert read_prompts("saved").dataset["prompt"][:] == ["a"]
    assert not load_rows(Source("saved"), None, 0)[0].cache_files  # beside which `datasets` would cache


def test_nothing_is_cached_and_nothing_is_printed(tmp_path: Path) -> None:
    """Two processes at once, with a home and a cache that cannot be written."""
    save(tmp_path / "saved", train=["a"])
    for name, content in {**{f"s/{n}.csv": CSV for n in range(20)}, "h/README.md": CONFIGS, "h/en/x.jsonl": A}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    script = """
import sys
from vopd.data.sources import Source, load_rows, with_column
load_rows(Source("saved"), None, 0)
load_rows(Source("h", options={"name": "en"}), None, 0)
with_column(load_rows(Source("s"), 2, 0)[0].select([1, 0]), "more", ["a", "b"])
"""
    home = {name: "/dev/null/x" for name in ("HOME", "HF_HOME", "HF_DATASETS_CACHE", "XDG_CACHE_HOME")}
    environment = {name: value for name, value in os.environ.items() if "PROGRESS" not in name}
    environment |= {**home, "PYTHONPATH": str(SOURCES), "HF_HUB_OFFLINE": "1"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script], env=environment, cwd=tmp_path, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for _ in range(2)
    ]  # fmt: skip
    assert [run.communicate(timeout=60)[0] for run in runs] == ["", ""]


def test_problems_are_named_in_the_same_way(tmp_path: Path) -> None:
    """The split of problems is test where there is one; keys that a row lacks are not invented."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "train.jsonl").write_text('{"problem": "p", "answer": 1}\n')
    (tmp_path / "s" / "test.jsonl").write_text(
        '{"problem": "q", "answer": "007"}\n{"problem": "r", "answer": 5, "x": 1}\n'
    )
    found = load_benchmark(str(tmp_path / "s"))
    assert [(one.text, one.gold) for one in found.questions] == [("q", "007"), ("r", "5")] and found.name == "s"
    assert "x" not in found.questions[0].row
    assert len(load_benchmark(str(tmp_path / "s" / "t*.jsonl")).questions) == 3
    assert len(load_benchmark(f"math500={tmp_path / 's'}").questions) == 2
    save(tmp_path / "saved", train=["a"], valid=["b"])
    with pytest.raises(DataError, match=says("'test' ... train, valid")):
        load_benchmark(str(tmp_path / "saved"))
    with pytest.raises(ConfigurationError, match=says("'math50' ... 'math500' ... folder")):
        load_benchmark("math50")
    with pytest.raises(DataError, match=says("'someone/mine' ... cannot load")):
        load_benchmark("someone/mine")


def folder(place: Place) -> None:
    """Shards with a train and a test split, a CSV file, and a saved dataset."""
    (place.work / "s").mkdir()
    (place.work / "s" / "train.csv").write_text(
        "prompt,answer\n" + "".join(f"{n}+30=,{n + 30}\n" for n in range(12, 16))
    )
    (place.work / "s" / "test.csv").write_text("prompt,answer\n1+1=,2\n")
    save(place.work / "saved", train=["1+1=", "2+2=", "3+3=", "4+4="])


BASE = "--model {S} --teacher_model {T} --output_dir {out} --max_completion_length 8"
TRAIN = f"{BASE} --use_cpu true --per_device_train_batch_size 4 --max_steps 2"
CASES = [
    Case(f"validate {TRAIN} --dataset {{work}}/s --eval_data {{work}}/s/test.csv", 0, "", before=folder),
    Case(f"train {TRAIN} --dataset {{work}}/saved --dry-run", 0, "1+1=", before=folder),
    Case(f"validate {TRAIN} --dataset {{work}}/saved --dataset_options '{{name: x}}'", 2, "'name' ... saved",
         before=folder),
    Case(f"validate {TRAIN} --dataset {{work}}/s --dataset_split dev", 3, "'dev' ... train, test", before=folder),
    Case(f"validate {TRAIN} --dataset {{work}}/s/*.tsv --eval_data {{work}}/gone", 3, "no file matches ... *.tsv",
         before=folder, also=("no file ... gone",)),
    Case(f"variance {BASE} --dataset {{work}}/s/train.csv.gz", 3, "no file ... train.csv.gz ... 'train.csv'",
         before=folder),
    Case(f"compare {TRAIN} --dataset {{work}}/s --held_out {{work}}/s/train.jsonl", 3, "no file ... train.jsonl",
         before=folder),
    Case("eval --model {S} --data {work}/saved --output_dir {out}", 3, "saved ... row 0 ... no answer", before=folder),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.command.replace(TRAIN, "")[:70])
def test_commands(case: Case, place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    case.check(place, capfd.readouterr)

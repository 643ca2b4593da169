"""Benchmarks from files in the columns of the real datasets, and from a Hub that is played by a function.

Every question of the files under benchmark_rows/ is invented; only the columns are those of the datasets.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from messages import says
from vopd.errors import ConfigurationError, DataError
from vopd.evaluation.benchmarks import DEFINITIONS, Question, contamination, load_benchmark, training_texts
from vopd.evaluation.benchmarks.fields import find, read_question, shuffled

FILES = Path(__file__).with_name("benchmark_rows")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def load(name: str, file: str) -> Any:
    return load_benchmark(f"{name}={FILES / file}")


@pytest.mark.parametrize(
    ("name", "file", "golds"),
    [
        ("math500", "math500.jsonl", ["25", r"\left( \frac{3}{2}, \frac{\pi}{2} \right)"]),
        ("minerva", "minerva.jsonl", ["50", "2e-11"]),
        ("amc23", "amc23.jsonl", ["10", "64"]),
        ("aime24", "aime24_h4.jsonl", ["249"]),
        ("aime24", "aime24_jia.jsonl", ["249"]),
        ("aime24", "aime24_math_ai.jsonl", [r"\boxed{249}"]),
        ("aime25", "aime25_math_ai.jsonl", ["30"]),
        ("aime25", "aime25_lin.jsonl", ["30"]),
        ("aime25", "aime25_arena.jsonl", ["30"]),
        ("gpqa_diamond", "gpqa_fingertap.jsonl", ["B"]),
        ("sciknoweval", "sciknoweval.jsonl", ["C"]),
        ("dapo_math", "dapo14k.jsonl", ["7"]),
        ("dapo_math", "dapo_processed.jsonl", ["7"]),
        ("dapo_math", "dapo_verl.jsonl", ["7"]),
    ],
)
def test_every_set_in_its_own_columns(name: str, file: str, golds: list[str]) -> None:
    found = load(name, file)
    assert [question.gold for question in found.questions] == golds
    assert all(question.text and question.kind == found.kind == DEFINITIONS[name].kind for question in found.questions)
    assert found.source.endswith(file) and found.revision is None


def test_the_seven_of_the_paper_and_the_training_set_have_names() -> None:
    names = {"math500", "minerva", "amc23", "aime24", "aime25", "gpqa_diamond", "sciknoweval", "dapo_math"}
    assert set(DEFINITIONS) == names
    assert DEFINITIONS["aime24"].protocol.samples == DEFINITIONS["aime25"].protocol.samples == 32
    math, choice = DEFINITIONS["math500"].protocol, DEFINITIONS["gpqa_diamond"].protocol
    assert (math.samples, math.temperature, math.top_p, math.top_k, math.max_new_tokens) == (8, 0.6, 1.0, 0, 4096)
    assert (choice.samples, choice.top_p, choice.top_k) == (8, 0.95, 20)


def test_prompts_ask_for_a_box() -> None:
    assert load("math500", "math500.jsonl").template.endswith(r"put your final answer within \boxed{}.")


def test_the_right_option_is_where_the_id_puts_it() -> None:
    first, second = load("gpqa_diamond", "gpqa.jsonl").questions
    for question, right in ((first, "electron"), (second, "argon")):
        assert f"{question.gold}. {right}" in question.text.splitlines()
    assert first.id == "rec1"
    # Written down once: another machine or version must give the same order.
    assert first.text.splitlines()[2:] == ["A. electron", "B. muon", "C. proton", "D. pion"]


def test_option_order_depends_on_the_id_and_not_on_the_source() -> None:
    options = ["one", "two", "three", "four"]
    assert shuffled(options, "a") == shuffled(options[::-1], "a")
    firsts = {shuffled(options, str(number)).index("one") for number in range(40)}
    assert firsts == {0, 1, 2, 3}


def test_options_with_letters_keep_them() -> None:
    question = load("sciknoweval", "sciknoweval.jsonl").questions[0]
    assert question.text.splitlines()[2:] == ["A. 16", "B. 17", "C. 18", "D. 19"]


@pytest.mark.parametrize(
    ("row", "letter"),
    [
        ({"question": "?", "options": ["x", "y", "z"], "letter": "b"}, "B"),
        ({"question": "?", "options": ["x", "y", "z"], "answer": 2}, "C"),
        ({"question": "?", "options": ["x", "y", "z"], "answer": "y"}, "B"),
        ({"question": "?", "options": ["A) x", "B) y"], "answer": "(B)"}, "B"),
        ({"question": "?", "options": {"A": "x", "B": "y"}, "answer": "B"}, "B"),
        ({"question": "?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}, "B"),
    ],
)
def test_spellings_of_the_right_option(row: dict[str, Any], letter: str) -> None:
    question = read_question(row, "choice", "row")
    assert question.gold == letter
    assert question.text.splitlines()[2:4] == ["A. x", "B. y"]


@pytest.mark.parametrize("answer", ["w", "E", 7])
def test_an_answer_that_is_no_option(answer: Any) -> None:
    with pytest.raises(DataError, match="none of its options"):
        read_question({"question": "?", "options": ["x", "y"], "answer": answer}, "choice", "row 3")


def test_columns_are_found_whatever_their_case() -> None:
    row = {"Correct Answer": "x", "answerKey": "", "Details": {"Level": 3}}
    assert find(row, ("correct_answer",)) == "x"
    assert find(row, ("answer_key", "correct-answer")) == "x"  # empty counts as absent
    assert find(row, ("details.level",)) == 3
    assert find(row, ("details.level.deeper", "nothing")) is None


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_any_file_by_its_columns(tmp_path: Path, suffix: str) -> None:
    rows = [{"Question": "1 + 1?", "ANSWER": "2"}, {"Question": "1 + 2?", "ANSWER": "3"}]
    path = tmp_path / f"mine{suffix}"
    if suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        table = pytest.importorskip("pyarrow").Table.from_pylist(rows)
        parquet.write_table(table, path)
    found = load_benchmark(str(path))
    assert (found.name, found.kind) == ("mine", "math")
    assert [(question.text, question.gold) for question in found.questions] == [("1 + 1?", "2"), ("1 + 2?", "3")]
    assert load_benchmark(f"math500={path}", count=1).questions == found.questions[:1]


def test_a_file_with_options_is_multiple_choice(tmp_path: Path) -> None:
    path = tmp_path / "quiz.jsonl"
    path.write_text(json.dumps({"question": "?", "options": ["x", "y"], "answer": "A"}) + "\n")
    assert load_benchmark(str(path)).kind == "choice"
    path.write_text(path.read_text() + json.dumps({"question": "?", "answer": "2"}) + "\n")
    with pytest.raises(DataError, match="some rows have options"):
        load_benchmark(str(path))


def test_fingerprint_follows_the_questions(tmp_path: Path) -> None:
    copy = tmp_path / "renamed.jsonl"
    shutil.copy(FILES / "math500.jsonl", copy)
    first = load("math500", "math500.jsonl")
    assert first.fingerprint == load_benchmark(f"math500={copy}").fingerprint
    assert first.fingerprint != load_benchmark(f"math500={copy}", count=1).fingerprint
    copy.write_text(copy.read_text().replace('"answer": "25"', '"answer": "26"'))
    assert first.fingerprint != load_benchmark(f"math500={copy}").fingerprint


def test_repeated_ids_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    path.write_text('{"id": 1, "question": "a", "answer": "1"}\n{"id": 1, "question": "b", "answer": "2"}\n')
    assert [question.id for question in load_benchmark(str(path)).questions] == ["1#0", "1#1"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "?", "answer": "1"}, "line 1 ... question ... columns text, answer"),
        ({"question": "?"}, "line 1 ... no answer"),
        ({"question": "?", "answer": "long " * 200}, "without a box"),
        ({"question": "  ", "answer": "1"}, "no question"),
    ],
)
def test_rows_that_cannot_be_read(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=says(message)):
        load_benchmark(str(path))


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(ConfigurationError, match="math500, minerva"):
        load_benchmark("math5000")
    with pytest.raises(ConfigurationError, match="unknown kind"):
        load_benchmark("mine.jsonl", kind="essay")
    with pytest.raises(DataError, match="there is no file"):
        load_benchmark("nowhere.jsonl")
    with pytest.raises(ConfigurationError, match="count"):
        load_benchmark("math500", count=0)


class Hub:
    """What `datasets` and `huggingface_hub` are asked, and what they answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]] | Exception) -> None:
        self.rows, self.asked = rows, {}
        monkeypatch.setattr("datasets.load_dataset", self.load)
        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: type("Info", (), {"sha": COMMIT}))

    def load(self, *arguments: Any, **options: Any) -> Any:
        import datasets

        self.asked = {"arguments": arguments, **options}
        if isinstance(self.rows, Exception):
            raise self.rows
        return datasets.Dataset.from_list(self.rows)


def test_from_the_hub_pinned_to_a_commit(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    hub = Hub(monkeypatch, [{"problem": "1 + 1?", "answer": "2", "unique_id": "a"}])
    with caplog.at_level(logging.WARNING):
        found = load_benchmark("math500")
    assert hub.asked == {"arguments": ("HuggingFaceH4/MATH-500", None), "split": "test", "revision": COMMIT}
    assert (found.source, found.revision) == ("HuggingFaceH4/MATH-500", COMMIT)
    assert "1 question, but math500 has 500" in caplog.text


def test_another_source_of_the_same_set_keeps_its_split(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, [{"ID": "1", "Problem": "1 + 1?", "Answer": 2}])
    load_benchmark("aime24=Maxwell-Jia/AIME_2024", count=1)
    assert hub.asked["arguments"] == ("Maxwell-Jia/AIME_2024", None) and hub.asked["split"] == "train"


def test_a_gated_set_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    error = datasets.exceptions.DatasetNotFoundError("Dataset 'Idavidrein/gpqa' is a gated dataset on the Hub.")
    Hub(monkeypatch, error)
    with pytest.raises(
        DataError,
        match=says("gated ... https://huggingface.co/datasets/Idavidrein/gpqa ... gpqa_diamond=fingertap/GPQA-Diamond"),
    ):
        load_benchmark("gpqa_diamond")


def test_a_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, ConnectionError("Couldn't reach the Hub"))
    with pytest.raises(DataError, match=says("'HuggingFaceH4/MATH-500' ... math500=FILE.jsonl")):
        load_benchmark("math500")


def test_tasks_of_reasoning_gym() -> None:
    pytest.importorskip("vopd.data.reasoning")
    found = load_benchmark("reasoning_gym:chain_sum", count=3, seed=1)
    assert found.kind == "task" and len(found.questions) == 3
    assert found.questions[0].problem.question == found.questions[0].text
    assert found == load_benchmark("reasoning_gym:chain_sum", count=3, seed=1)
    assert found.fingerprint != load_benchmark("reasoning_gym:chain_sum", count=3, seed=2).fingerprint


def question(identity: str, text: str) -> Question:
    return Question(identity, text, "0", "math")


def test_contamination() -> None:
    questions = [
        question("a", "A train leaves at noon and travels 60 miles per hour for 3 hours. How far does it get?"),
        question("b", "What is 17 + 4?"),
        question("c", "How many primes are there between 100 and 200, not counting those that end in 3?"),
    ]
    prompts = [
        "How many legs have three hens?",
        "Solve this.  A TRAIN leaves at noon and travels 60 miles per hour for 3 hours. How far does it get?\nOK?",
        "Compute: what is 17 + 4?",
        "A train leaves at noon and travels 80 miles an hour for two hours. How far is that?",
    ]
    found = contamination(questions, prompts)
    assert [(overlap.question_id, overlap.prompt, overlap.share) for overlap in found] == [("a", 1, 1.0), ("b", 2, 1.0)]
    assert contamination(questions, prompts[:1]) == [] == contamination([], prompts)


def test_other_questions_of_the_same_task_are_no_contamination() -> None:
    """Their wording is the same, so that two questions with other words in it share most runs."""
    asked = [Question(word, f"Spell this word backward (example: sun -> nus): {word}", word, "task") for word in "ab"]
    prompts = ["Spell this word backward (example: sun -> nus): c", asked[1].text + "\nAnswer in tags."]
    assert [overlap.question_id for overlap in contamination(asked, prompts)] == ["b"]


def test_training_prompts_from_a_set_or_a_file(tmp_path: Path) -> None:
    assert training_texts(f"dapo_math={FILES / 'dapo14k.jsonl'}") == ["If $x + 5 = 12$, what is $x$?"]
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    assert training_texts(str(path)) == ["a", "b"]

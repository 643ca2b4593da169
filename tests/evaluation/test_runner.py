"""The runner: what it writes, and that a killed evaluation ends as one that was left alone."""

from __future__ import annotations

import copy
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from messages import says, told
from vopd.data.chat import Rendered
from vopd.errors import ConfigurationError, DataError, MissingExtraError
from vopd.evaluation import compare_results, evaluate, load_results
from vopd.evaluation.benchmarks import Protocol, load_benchmark
from vopd.evaluation.engines import Sampler
from vopd.evaluation.journal import Journal, only_one
from vopd.evaluation.results import print_table, remarks, table_rows
from vopd.evaluation.runner import short_names
from vopd.models import Completion, load_model, load_tokenizer, plan_batches
from vopd.reporting.tables import format_table

PROBLEMS = [
    {"id": f"p{n}", "problem": f"How many legs have {n} dogs?" + " Think." * n, "answer": str(4 * n)}
    for n in range(1, 7)
]
METRICS = ("avg", "pass", "maj")
FAST = {"samples": 2, "temperature": 1.0, "max_new_tokens": 8, "batch_size": 3, "dtype": "float32", "device": "cpu"}


@pytest.fixture
def problems(tmp_path: Path) -> str:
    path = tmp_path / "legs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS))
    return str(path)


def letters(text: list[str]) -> dict[str, list[list[int]]]:
    """A tokenizer without a chat template."""
    return {"input_ids": [[*map(ord, one)] for one in text]}


def scripted(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Sequence[str]]) -> list[tuple[list[str], int]]:
    """Every model answers problem n with the n-th text of its name's list, by turns; returns the calls."""
    calls: list[tuple[list[str], int]] = []

    def open_sampler(source: str, *_: Any) -> Sampler:
        def draw(prompts: Sequence[Rendered], protocol: Protocol, seed: int) -> list[Completion]:
            asked = [prompt.text for prompt in prompts]
            calls.append((asked, seed))
            texts = answers[Path(source).name]
            legs = [int(prompt.split("have ")[1].split()[0]) for prompt in asked]
            return [Completion(texts[n % len(texts)].format(n=4 * n), (1, 2, 3), False) for n in legs]

        return Sampler(letters, draw)

    monkeypatch.setattr("vopd.evaluation.completions.open_sampler", open_sampler)
    return calls


def test_results_and_samples(monkeypatch: pytest.MonkeyPatch, problems: str, tmp_path: Path) -> None:
    # Problems 2, 4, 6 are answered right, 3 and 1 and 5 without a box.
    scripted(monkeypatch, {"m": [r"It is \boxed{{{n}}}.", "no idea"]})
    found = evaluate("m", [problems], tmp_path / "out", samples=4, training_prompts=[PROBLEMS[0]["problem"]])
    (entry,) = found["results"]
    assert entry["avg_at_k"]["value"] == entry["maj_at_k"]["value"] == 0.5
    assert {k: score["value"] for k, score in entry["pass_at_k"].items()} == {"1": 0.5, "2": 0.5, "4": 0.5}
    assert (entry["format_rate"], entry["truncation_rate"], entry["mean_length"]) == (0.5, 0, 3)
    assert entry["per_problem"] == {"p1": 0, "p2": 1, "p3": 0, "p4": 1, "p5": 0, "p6": 1}
    assert entry["avg_at_k"]["low"] < 0.5 < entry["avg_at_k"]["high"]
    assert [overlap["question_id"] for overlap in found["contamination"]["legs"]] == ["p1"]
    assert found == load_results(tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == 24
    assert {line["outcome"] for line in lines if line["id"] == "p2"} == {"right"}
    assert lines[0]["prompt"].endswith(r"put your final answer within \boxed{}.") and lines[0]["gold"] == "4"
    described = found["benchmarks"][0]
    assert described["fingerprint"] == load_benchmark(problems).fingerprint and described["revision"] is None
    assert described["protocol"]["samples"] == 4 and described["protocol"]["temperature"] == 0.6


def test_batches_are_planned_and_seeded_by_number(
    monkeypatch: pytest.MonkeyPatch, problems: str, tmp_path: Path
) -> None:
    calls = scripted(monkeypatch, {"m": ["x"]})
    evaluate("m", [problems], tmp_path / "a", samples=2, batch_size=5, seed=1)
    assert [len(prompts) for prompts, _ in calls] == [5, 5, 2]
    assert [len(prompt) for prompts, _ in calls for prompt in prompts] == sorted(
        (len(prompt) for prompts, _ in calls for prompt in prompts), reverse=True
    )
    seeds = [seed for _, seed in calls]
    assert len(set(seeds)) == 3
    evaluate("m", [problems], tmp_path / "b", samples=2, batch_size=5, seed=1)
    evaluate("m", [problems], tmp_path / "c", samples=2, batch_size=5, seed=2)
    assert [seed for _, seed in calls[3:6]] == seeds and not set(seeds) & {seed for _, seed in calls[6:]}


def test_every_sample_is_planned_once() -> None:
    batches = plan_batches(["aa", "a", "aaaa"], 3, 2)
    assert sorted(pair for batch in batches for pair in batch) == [(p, s) for p in range(3) for s in range(3)]
    assert [pair[0] for batch in batches for pair in batch] == [2, 2, 2, 0, 0, 0, 1, 1, 1]


def test_a_finished_evaluation_draws_nothing_again(
    monkeypatch: pytest.MonkeyPatch, problems: str, tmp_path: Path
) -> None:
    scripted(monkeypatch, {"m": ["x"]})
    first = evaluate("m", [problems], tmp_path / "out")

    def refuse(*_: Any, **__: Any) -> Sampler:
        raise AssertionError("loaded again")

    monkeypatch.setattr("vopd.evaluation.completions.open_sampler", refuse)
    assert evaluate("m", [problems], tmp_path / "out") == first


def test_a_torn_line_is_drawn_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).add(0, [{"a": 1}])
    Journal(path).add(1, [{"a": 2}])
    whole = path.read_bytes()
    for cut in range(1, len(whole) // 2):
        path.write_bytes(whole[:-cut])
        journal = Journal(path)
        assert journal.batches == {0: [{"a": 1}]}
        journal.add(1, [{"a": 2}])
        assert path.read_bytes() == whole
    path.write_bytes(b'{"batch": 0}\n' + whole)
    with pytest.raises(DataError, match="line 1 is damaged"):
        Journal(path)


SAMPLED: dict[str, Any] = {
    "samples": 4, "temperature": 1.0, "max_new_tokens": 24, "batch_size": 2, "dtype": "float32", "device": "cpu",
}  # fmt: skip
SCRIPT = f"""
import sys
from vopd.evaluation import evaluate
evaluate(sys.argv[1], [sys.argv[2]], sys.argv[3], **{SAMPLED})
"""


def start(model: Path, problems: str, folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(model), problems, str(folder)], env=environment)


def test_killed_at_any_moment_it_ends_the_same(tiny_student_dir: Path, problems: str, tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    evaluate(str(tiny_student_dir), [problems], undisturbed, **SAMPLED)
    for batches in (1, 5):
        process = start(tiny_student_dir, problems, killed)
        deadline = time.monotonic() + 120
        while lines_written(killed) < batches and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (killed / "results.json").exists(), "it was too fast to be killed"
    assert 0 < lines_written(killed) < 12
    evaluate(str(tiny_student_dir), [problems], killed, **SAMPLED)
    for name in ("results.json", "samples.jsonl"):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes()
    texts = [json.loads(line)["completion"] for line in (killed / "samples.jsonl").read_text().splitlines()]
    assert len(set(texts)) == 24  # every sample its own


def lines_written(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (folder / "completions").glob("*.jsonl"))


def test_a_loaded_model_and_its_folder_agree(tiny_student_dir: Path, problems: str, tmp_path: Path) -> None:
    model, tokenizer = load_model(tiny_student_dir, dtype="float32"), load_tokenizer(tiny_student_dir)
    evaluate(model, [problems], tmp_path / "loaded", tokenizer=tokenizer, **FAST)
    evaluate(tiny_student_dir, [problems], tmp_path / "folder", **FAST)
    texts = [
        [json.loads(line)["completion"] for line in (tmp_path / name / "samples.jsonl").read_text().splitlines()]
        for name in ("loaded", "folder")
    ]
    assert texts[0] == texts[1]


@pytest.fixture
def adapter_dir(tiny_student_dir: Path, tmp_path: Path) -> Path:
    """Folder of an adapter on the tiny student, trained to end at token 42 too."""
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    base = load_model(tiny_student_dir, dtype="float32")
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.mul_(5)
    adapted.save_pretrained(tmp_path / "adapter")
    load_tokenizer(tiny_student_dir).save_pretrained(tmp_path / "adapter")
    base.generation_config.eos_token_id = [1, 42]
    base.generation_config.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_beside_its_base_model(
    tiny_student_dir: Path, adapter_dir: Path, problems: str, tmp_path: Path
) -> None:
    found = evaluate([tiny_student_dir, adapter_dir], [problems], tmp_path / "out", **FAST)
    assert [row["checkpoint"] for row in found["results"]] == ["student", "adapter"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    texts = {
        name: [line["completion"] for line in lines if line["checkpoint"] == name] for name in ("student", "adapter")
    }
    assert texts["student"] != texts["adapter"]
    assert (tmp_path / "out" / "accuracy.png").stat().st_size > 1000


def test_other_settings_need_another_folder(monkeypatch: pytest.MonkeyPatch, problems: str, tmp_path: Path) -> None:
    scripted(monkeypatch, {"m": ["x"], "n": ["x"]})
    evaluate("m", [problems], tmp_path)
    for changed in ({"seed": 1}, {"samples": 3}, {"template": "{question}!"}):
        with pytest.raises(ConfigurationError, match=says(f"{tmp_path} ... another folder")):
            evaluate("m", [problems], tmp_path, **changed)
    with pytest.raises(ConfigurationError, match=says("checkpoints ... folder")):
        evaluate("n", [problems], tmp_path)


def test_two_at_once_in_one_folder(monkeypatch: pytest.MonkeyPatch, problems: str, tmp_path: Path) -> None:
    scripted(monkeypatch, {"m": ["x"]})
    with only_one(tmp_path), pytest.raises(ConfigurationError, match="another evaluation is running"):
        evaluate("m", [problems], tmp_path)
    with only_one(tmp_path):  # which is free again
        pass


def test_a_file_system_without_locks_is_no_other_evaluation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError, match="No locks available"), only_one(tmp_path):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0}, "samples ... 1"),
        ({"temperature": 0, "samples": 2}, "samples ... temperature"),
        ({"temprature": 1}, "temprature"),
        ({"backend": "llama.cpp"}, "backend ... llama.cpp"),
        ({"max_model_len": 4096}, "max_model_len ... backend=vllm"),
    ],
)
def test_settings_out_of_range(problems: str, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=says(message)):
        evaluate("m", [problems], tmp_path, **arguments)


def test_nothing_to_evaluate(problems: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="at least one benchmark"):
        evaluate("m", [], tmp_path)
    with pytest.raises(ConfigurationError, match="none twice"):
        evaluate("m", [problems, problems], tmp_path)
    with pytest.raises(ConfigurationError, match="at least one model"):
        evaluate([], [problems], tmp_path)
    with pytest.raises(ConfigurationError, match="needs its tokenizer"):
        evaluate(object(), [problems], tmp_path)
    with pytest.raises(ConfigurationError, match=says("vllm loads a model itself ... backend")):
        evaluate(object(), [problems], tmp_path, tokenizer=object(), backend="vllm")


def test_greedy_is_one_sample(monkeypatch: pytest.MonkeyPatch, problems: str, tmp_path: Path) -> None:
    scripted(monkeypatch, {"m": [r"\boxed{{{n}}}"]})
    (entry,) = evaluate("m", [problems], tmp_path, temperature=0)["results"]
    assert entry["samples"] == 1 and entry["avg_at_k"]["value"] == 1


def test_thinking_opened_by_the_template_never_scores(
    monkeypatch: pytest.MonkeyPatch, problems: str, tmp_path: Path
) -> None:
    scripted(monkeypatch, {"m": [r"so \boxed{{{n}}}", r"hm</think>\boxed{{{n}}}"]})
    (entry,) = evaluate("m", [problems], tmp_path, template="{question}\n<think>\n", samples=1)["results"]
    assert entry["per_problem"] == {"p1": 1, "p2": 0, "p3": 1, "p4": 0, "p5": 1, "p6": 0}


def test_chat_template_and_thinking_mode(tiny_student_dir: Path, problems: str, tmp_path: Path) -> None:
    model, tokenizer = load_model(tiny_student_dir, dtype="float32"), load_tokenizer(tiny_student_dir)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}[bot]"
        "{% if enable_thinking %}<think>{% else %}<think></think>{% endif %}"
    )
    for thinking in (True, False):
        folder = tmp_path / str(thinking)
        evaluate(model, [problems], folder, tokenizer=tokenizer, chat_template=True, thinking=thinking, **FAST)
        prompt = json.loads((folder / "samples.jsonl").read_text().splitlines()[0])["prompt"]
        assert prompt.startswith("[user] How many") and prompt.endswith("<think>" if thinking else "</think>")


def test_templates_name_any_text_column(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"problem": "legs of have 2 dogs?", "answer": "8", "Hint": "count"}\n')
    calls = scripted(monkeypatch, {"m": ["x"]})
    evaluate("m", [str(path)], tmp_path / "out", samples=1, template="{hint}: {problem}")
    assert calls[0][0] == ["count: legs of have 2 dogs?"]


def test_tasks_are_graded_by_their_own_verifier(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("vopd.data.reasoning")
    benchmark = load_benchmark("reasoning_gym:chain_sum", count=4)
    golds = {question.text: question.gold for question in benchmark.questions}

    def open_sampler(source: str, *_: Any) -> Sampler:
        def draw(prompts: Sequence[Rendered], protocol: Protocol, seed: int) -> list[Completion]:
            return [Completion(f"<answer>{golds[prompt.text]}</answer>", (1,), False) for prompt in prompts]

        return Sampler(letters, draw)

    monkeypatch.setattr("vopd.evaluation.completions.open_sampler", open_sampler)
    (entry,) = evaluate("m", [benchmark], tmp_path, samples=2)["results"]
    assert entry["avg_at_k"]["value"] == entry["maj_at_k"]["value"] == entry["format_rate"] == 1


def test_paired_comparison(monkeypatch: pytest.MonkeyPatch, problems: str, tmp_path: Path) -> None:
    scripted(
        monkeypatch, {"bad": ["none", "none", r"\boxed{{{n}}}"], "good": [r"\boxed{{{n}}}", r"\boxed{{{n}}}", "none"]}
    )
    for name in ("bad", "good"):
        evaluate(name, [problems], tmp_path / name)
    first, second = (load_results(tmp_path / name) for name in ("bad", "good"))
    difference = compare_results(first, second)["legs"]
    assert difference.value == pytest.approx(1 / 3)
    assert difference.low < difference.value < difference.high and 0 < difference.p_value <= 1
    assert compare_results(second, first)["legs"].value == pytest.approx(-1 / 3)


def test_comparison_needs_the_same_questions(monkeypatch: pytest.MonkeyPatch, problems: str, tmp_path: Path) -> None:
    scripted(monkeypatch, {"m": ["x"]})
    first = evaluate("m", [problems], tmp_path / "a")
    Path(problems).write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS[:3]))
    second = evaluate("m", [problems], tmp_path / "b")
    with pytest.raises(DataError, match="not the same"):
        compare_results(first, second)
    apart = copy.deepcopy(first)
    apart["results"][0]["per_problem"] = {"of another": 1.0}
    with pytest.raises(DataError, match=says("no problem ... legs ... both")):
        compare_results(first, apart)
    second["benchmarks"][0]["name"] = "other"
    with pytest.raises(DataError, match="nothing to compare"):
        compare_results(first, second)
    with pytest.raises(DataError, match=says("folder ... finished evaluation")):
        load_results(tmp_path)


def test_the_table(monkeypatch: pytest.MonkeyPatch, problems: str, tmp_path: Path, capsys: Any) -> None:
    scripted(monkeypatch, {"m": [r"\boxed{{{n}}}", "none"]})
    header, rows = table_rows(evaluate("m", [problems], tmp_path))
    print_table(header, rows)
    printed = capsys.readouterr().out
    assert printed.rstrip("\n") == format_table(header, rows) and "\x1b" not in printed
    assert [line.split()[2:4] for line in printed.splitlines()[2:]] == [[f"{name}@8", "50.0"] for name in METRICS]
    assert max(map(len, printed.splitlines())) <= 80


def test_a_terminal_gets_the_same_cells(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_table(["a", "interval"], [["x", "[0.0, 1.0]"]])
    assert "[0.0, 1.0]" in capsys.readouterr().out


def test_remarks() -> None:
    row = {"checkpoint": "m", "problems": 9, "truncation_rate": 0.25, "mean_length": 99.6}
    results = {
        "benchmarks": [{"name": "a", "kind": "math"}, {"name": "b", "kind": "math"}],
        "results": [
            {**row, "benchmark": "a", "format_rate": 0.1, "ungradable": 1, "timed_out": 2},
            {**row, "benchmark": "b", "format_rate": 0.9, "ungradable": 0, "timed_out": 0},
        ],
        "contamination": {"a": [1, 2], "b": [1]},
    }
    first, second, seen, one, hint = remarks(results)
    assert told("9 problems ... 1 problem ... 2 comparisons ... 100 tokens", first)
    assert told("length limit 25.0% ... 100 tokens", second) and "left out" not in second
    assert told("a ... 2 problems occur ... training prompts", seen) and told("b ... 1 problem occurs", one)
    assert told(r"hint ... completions of a ... \boxed{}", hint)


def test_short_names() -> None:
    assert short_names(["runs/a/checkpoint-1", "runs/a/checkpoint-2"]) == ["checkpoint-1", "checkpoint-2"]
    assert short_names(["runs/a/model/", "runs/b/model"]) == ["a/model", "b/model"]


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What happens to the engines of a vLLM that only writes down: the options of one that starts, where each batch
    ends and what it does not draw, and the end."""
    seen: list[Any] = []

    class Engine:
        def __init__(self, **options: Any) -> None:
            seen.append(options)
            self.tokenizer = load_tokenizer(options["model"])
            core = SimpleNamespace(shutdown=lambda timeout: seen.append(f"end of {Path(options['model']).name}"))
            self.llm_engine = SimpleNamespace(engine_core=core)

        def generate(self, prompts: list[dict[str, list[int]]], settings: list[Any], **_: Any) -> list[Any]:
            assert len({one.seed for one in settings}) == len(prompts) and settings[0].max_tokens == 8
            if "sixth" in self.tokenizer.decode(prompts[0]["prompt_token_ids"]):
                raise RuntimeError("the engine is out of memory")
            seen.append(settings[0])
            output = SimpleNamespace(text=r"\boxed{4}", token_ids=[1, 2], finish_reason="length")
            return [SimpleNamespace(outputs=[output]) for _ in prompts]

    module = ModuleType("vllm")
    module.__spec__ = SimpleNamespace(origin="here")  # type: ignore[assignment]
    module.LLM, module.SamplingParams = Engine, lambda **options: SimpleNamespace(**options)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    request = ModuleType("vllm.lora.request")
    request.LoRARequest = lambda *given: given  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm.lora.request", request)
    return seen


def test_vllm_that_is_not_there(tiny_student_dir: Path, problems: str, tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match="pip install vllm"):
        evaluate(tiny_student_dir, [problems], tmp_path / "absent", backend="vllm")


def test_vllm_draws_through_one_engine_after_the_other(
    engines: list[Any], problems: str, tiny_student_dir: Path, tiny_teacher_dir: Path, tmp_path: Path
) -> None:
    second = tmp_path / "legs again.jsonl"
    second.write_text(Path(problems).read_text())
    limits = {"gpu_memory_utilization": 0.4, "max_model_len": 4096}
    models, settings = [tiny_student_dir, tiny_teacher_dir], {"backend": "vllm", **FAST, **limits}
    results = evaluate(models, [problems, str(second)], tmp_path / "out", **settings)
    student, teacher = ({"model": str(model), "dtype": "float32", "revision": None, **limits} for model in models)
    starts_and_ends = [entry for entry in engines if not isinstance(entry, SimpleNamespace)]
    assert starts_and_ends == [student, "end of student", teacher, "end of teacher"]
    draws = [entry for entry in engines if isinstance(entry, SimpleNamespace)]
    of_student, of_teacher = (dict.fromkeys(range(300, rows), -100.0) for rows in (304, 320))
    assert (draws[0].logit_bias, draws[-1].logit_bias) == (of_student, of_teacher)
    assert all(draw.stop_token_ids == [1] for draw in draws)
    entry = results["results"][0]
    assert entry["per_problem"]["p1"] == 1 and entry["truncation_rate"] == 1
    assert results["settings"]["max_model_len"] == 4096 and "gpu_memory_utilization" not in results["settings"]
    evaluate(models, [problems, str(second)], tmp_path / "out", **settings)
    assert len(engines) == 4 + len(draws)  # where nothing has to be drawn, none starts


def test_vllm_ends_where_an_adapter_was_trained_to(
    engines: list[Any], problems: str, adapter_dir: Path, tiny_student_dir: Path, tmp_path: Path
) -> None:
    ends = json.loads((adapter_dir / "generation_config.json").read_text())
    (adapter_dir / "generation_config.json").write_text(json.dumps({**ends, "eos_token_id": [1, 42, 304]}))
    evaluate(adapter_dir, [problems], tmp_path / "out", backend="vllm", **FAST)  # which refuses ids beyond the head
    assert engines[0]["model"] == str(tiny_student_dir) and engines[0]["max_lora_rank"] == 8
    assert engines[1].stop_token_ids == [1, 42] and engines[1].ignore_eos


def test_an_engine_that_fails_is_shut_down_too(engines: list[Any], tiny_student_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "sixth.jsonl"
    path.write_text(json.dumps({"id": "p", "problem": "the sixth", "answer": "4"}) + "\n")
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate(tiny_student_dir, [str(path)], tmp_path / "out", backend="vllm", **FAST)
    assert engines == [{"model": str(tiny_student_dir), "dtype": "float32", "revision": None}, "end of student"]

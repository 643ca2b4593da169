from __future__ import annotations

import json
import shlex
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml

from messages import told
from vopd import cli
from vopd.errors import ConfigurationError
from vopd.models import load_model, load_tokenizer
from vopd.run.evaluation import evaluate
from vopd.run.plan import MAIN_FIELDS, TrainOptions, train_options

Train = Callable[..., int]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder).state_dict()


def test_trains_and_leaves_a_complete_run_directory(
    train: Train, run: Path, tiny_student_dir: Path, drawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train() == 0
    files = {path.name for path in run.iterdir()}
    assert {"resolved_config.yaml", "metrics.jsonl", "samples.jsonl", "report.html", "model"} <= files
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    numbers, figures = ({path.stem for path in (run / "report").glob(kind)} for kind in ("*.csv", "*.png"))
    assert len(figures) > 5 and figures == numbers
    before, after = weights(tiny_student_dir), weights(run / "model")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert (run / "model" / "README.md").is_file() and (run / "model" / "model.safetensors").is_file()
    assert not list((run / "model").glob("*.bin"))
    assert len(load_tokenizer(run / "model")) == 300
    assert f"--model {run / 'model'}" in capsys.readouterr().out


def test_processes_part_before_the_report_is_written(train: Train, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ends while it is connected may abort, and its launcher would then end the one that writes."""
    monkeypatch.setattr("vopd.run.train.write_report", lambda folder: apart.append(not dist.is_initialized()))
    apart: list[bool] = []
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert train() == 0 and apart == [True]
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def test_resolved_config_repeats_the_run(train: Train, run: Path) -> None:
    train("--seed", "3", "--report_to", "none")
    resolved = run / "resolved_config.yaml"
    text = resolved.read_text()
    assert "learning_rate: 0.01  # command line" in text and "estimator: full_rkl  # default" in text
    assert "loss_backend: auto  # default, torch on this machine" in text
    assert yaml.safe_load(text)["bf16"] is False  # as chosen, not as left open
    assert cli.main(["train", "--config", str(resolved), "--run_name", "again"]) == 0
    first, second = weights(run / "model"), weights(run.parent / "again" / "model")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_that_diverges_until_nothing_can_be_sampled(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--learning_rate", "1e38", "--max_steps", "3") == 6
    assert told("no token can be sampled ... learning_rate", capsys.readouterr().err)


def test_an_existing_run_is_refused_and_left_alone(train: Train, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("precious")
    assert train() == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in run.iterdir()] == ["metrics.jsonl"]
    assert (run / "metrics.jsonl").read_text() == "precious"


@pytest.mark.parametrize("more", [[], ["--lora_rank", "2"]], ids=["full", "lora"])
def test_resume_goes_on_after_the_checkpoint_and_ends_where_the_whole_run_does(
    train: Train, run: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    constant = ["--lr_scheduler_type", "constant", *more]
    train("--max_steps", "4", *constant, name="whole")
    train("--save_steps", "1", *constant)
    capsys.readouterr()
    assert train("--max_steps", "4", "--resume", "true", *constant) == 0
    shown = capsys.readouterr().err
    assert "step 2/4" not in shown and "step 3/4" in shown
    whole, resumed = weights(run.parent / "whole" / "model"), weights(run / "model")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


def test_lora_saves_an_adapter_that_loads_and_leaves_the_head(
    train: Train, run: Path, tiny_student_dir: Path, tiny_teacher_dir: Path
) -> None:
    """The two change places: the head of the untied model is a module that all-linear might take."""
    swapped = ["--model", str(tiny_teacher_dir), "--teacher_model", str(tiny_student_dir)]
    assert train(*swapped, "--lora_rank", "2") == 0
    config = json.loads((run / "model" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (2, 4, 0.0)
    names = {target.split(".")[-1] for target in config["target_modules"]}
    assert {"q_proj", "down_proj"} <= names and "lm_head" not in names
    ids = torch.tensor([[40, 41, 42]])
    assert not torch.equal(load_model(run / "model")(ids).logits, load_model(tiny_teacher_dir)(ids).logits)


@pytest.mark.parametrize("more", [[], ["--lora_rank", "2"]])
def test_the_student_learns_to_stop_where_the_teacher_does(
    train: Train, run: Path, tiny_teacher_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, more: list[str]
) -> None:
    """A teacher ending with an id that the student does not know as an end makes completions explode."""
    teacher = tmp_path / "teacher"
    model = load_model(tiny_teacher_dir)
    model.generation_config.eos_token_id = [1, 42]
    model.save_pretrained(teacher)
    load_tokenizer(tiny_teacher_dir).save_pretrained(teacher)
    assert train("--teacher_model", str(teacher), *more) == 0
    assert load_model(run / "model").generation_config.eos_token_id == [1, 42]
    assert "done for this run" in caplog.text


def test_accuracy_on_benchmarks_during_the_run(
    train: Train, run: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--eval_benchmarks", f"amc23={prompts}", "--eval_benchmark_limit", "3", "--eval_benchmark_samples", "2"]
    line = "accuracy on amc23 every 100 steps, at the start and at the end: 3 problems x 2 samples of up to 4 tokens"
    assert train(*more, "--dry-run") == 0 and line in capsys.readouterr().out
    assert train(*more, command="validate") == 0 and line in capsys.readouterr().out
    assert train(*more) == 0
    records = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "eval_amc23_avg@2" in record] == [0, 2]
    page = (run / "report.html").read_text()
    assert "Accuracy on benchmarks" in page and "measured no accuracy" not in page
    settings = yaml.safe_load((run / "resolved_config.yaml").read_text())
    assert settings["eval_benchmarks"] == [f"amc23={prompts}"]
    assert train("--eval_benchmarks", "math501", "--dry-run") == 2
    assert "unknown benchmark 'math501'" in capsys.readouterr().err


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["--estimator", "vodp"], 2, "did you mean 'vopd'?"),
            (["--learning_rat", "1"], 2, "did you mean 'learning_rate'?"),
            (["--top_k", "5"], 2, "loss_top_k"),
            (["--lora_alpha", "8"], 2, "lora_alpha ... lora_rank"),
            (["--quantization", "4bit"], 2, "quantization ... lora_rank"),
            (["--teacher_quantization", "2bit"], 2, "'2bit' ... 8bit ... 4bit"),
            (
                ["--lora_rank", "2", "--lora_target_modules", "q_proj,lm_head"],
                2,
                "adapter ... student's output head",
            ),
            (["--run_name", "../x"], 2, "run name"),
            (["--dataset", "missing.jsonl"], 3, "no file 'missing.jsonl'"),
            (["--model", "./missing"], 4, "no model folder ... './missing'"),
            (["--prompt_template", "{text}"], 2, "{text} ... problem, answer"),
            (["--trust_remote_code", "true"], 2, "trust_remote_code ... code"),
            (["--resume_from_checkpoint", "x"], 2, "resume_from_checkpoint ... set resume"),
            (["--max_steps", "soon"], 2, "max_steps ... whole number ... 'soon'"),
        ],
    )
    def test_one_clear_line_and_the_right_exit_code(
        self, train: Train, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
    ) -> None:
        assert train(*arguments) == code
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vopd: error:")]
        assert len(lines) == 1 + ("--quantization" in arguments)  # which also needs bitsandbytes
        assert told(message, lines[0])

    def test_nothing_is_written_before_the_settings_are_good(self, train: Train, run: Path) -> None:
        train("--estimator", "vodp")
        assert not run.exists()

    def test_a_run_that_could_not_start_can_be_started_again(self, train: Train, run: Path) -> None:
        assert train("--dataset", "missing.jsonl") == 3
        assert train() == 0

    def test_negative_rank(self) -> None:
        with pytest.raises(ConfigurationError, match="lora_rank"):
            TrainOptions("a", "b", "c", lora_rank=-1)


def test_every_setting_that_the_help_shows_exists() -> None:
    known = train_options()
    assert [name for name in MAIN_FIELDS if name not in known] == []
    assert [name for name, option in known.items() if option.shown and not option.text] == []


class TestSources:
    def test_a_parquet_file(self, train: Train, run: Path, tmp_path: Path) -> None:
        import datasets

        path = tmp_path / "p.parquet"
        datasets.Dataset.from_dict({"question": [f"{n} + 1" for n in range(16)]}).to_parquet(path)
        assert train("--dataset", str(path)) == 0
        assert " + 1" in (run / "samples.jsonl").read_text()

    def test_a_task(self, train: Train, run: Path) -> None:
        assert train("--dataset", "reasoning_gym:chain_sum", "--max_prompts", "16") == 0
        assert "arithmetic problem" in (run / "samples.jsonl").read_text()

    def test_a_mixture_of_the_command_line_and_its_resolved_config(
        self, train: Train, run: Path, prompts: Path
    ) -> None:
        mixture = f"[{{source: {prompts}, weight: 3}}, 'reasoning_gym:chain_sum']"
        assert train("--dataset", mixture) == 0
        given = yaml.safe_load((run / "resolved_config.yaml").read_text())["dataset"]
        assert given == [{"source": str(prompts), "weight": 3}, "reasoning_gym:chain_sum"]


class TestAccuracy:
    """`vopd train` reports what `vopd eval` finds."""

    @pytest.fixture
    def answering(self, tiny_student_dir: Path, tmp_path: Path) -> Path:
        """Problems whose answer is what the tiny student writes before training, so that accuracy is not 0."""
        from vopd.models import sample

        model, tokenizer = load_model(tiny_student_dir), load_tokenizer(tiny_student_dir)
        texts = ["one", "two 2", "three", "four", "legs", "dogs", "hens", "total"]
        written = sample(model, tokenizer, texts, temperature=0, max_new_tokens=4)
        path = tmp_path / "written.jsonl"
        rows = [{"problem": text, "answer": found.text} for text, found in zip(texts, written)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    @pytest.fixture
    def graded_by_text(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from vopd.evaluation import Grade, scores

        def grade_many(pairs: Any, kind: str) -> Any:
            return [Grade("right" if a.strip() == b else "wrong", a) for a, b in pairs]

        monkeypatch.setattr(scores, "grade_many", grade_many)
        monkeypatch.setattr(scores, "ungradable", lambda golds, kind: [False] * len(golds))

    @pytest.mark.parametrize("more", [[], ["--lora_rank", "2"]])
    def test_the_printed_command_gives_the_accuracy_that_training_reported(
        self, train: Train, run: Path, answering: Path, graded_by_text: None, more: list[str],
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        assert train("--eval_data", str(answering), "--learning_rate", "3e-3", "--estimator", "vopd", *more) == 0
        shown = capsys.readouterr().out
        reported = json.loads((run / "results.json").read_text())
        assert reported["start"]["avg_at_k"]["value"] == 1.0
        for which in ("start", "trained"):
            command = shlex.split(reported["repeat"][which])
            assert command[:2] == ["vopd", "eval"]
            assert cli.main([*command[1:], "--output_dir", str(run.parent), "--run_name", which]) == 0
            again = json.loads((run.parent / which / "results.json").read_text())
            assert again["results"][0]["avg_at_k"] == reported[which]["avg_at_k"]
            first = (run / "evaluation" / which / "samples.jsonl").read_text()
            assert (run.parent / which / "samples.jsonl").read_text() == first
        assert f"to repeat: {reported['repeat']['trained']}" in shown
        assert 0 < reported["trained"]["avg_at_k"]["value"] < 1  # training moved it, so the two models are told apart
        difference = reported["trained"]["avg_at_k"]["value"] - reported["start"]["avg_at_k"]["value"]
        assert reported["difference"]["value"] == pytest.approx(difference)

    def test_a_task(self, train: Train, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert train("--eval_task", "reasoning_gym:chain_sum", "--eval_count", "3", "--eval_max_new_tokens", "2") == 0
        reported = json.loads((run / "results.json").read_text())
        assert (reported["problems"], reported["trained"]["problems"]) == ("chain_sum", 3)
        assert reported["trained"]["settings"]["max_new_tokens"] == 2
        assert told("accuracy ... start model ... chain_sum ... 0.0 %", capsys.readouterr().out)

    def test_the_problems_of_a_task_are_others_than_those_that_are_trained_on(self, train: Train, run: Path) -> None:
        task = "reasoning_gym:chain_sum"
        assert train("--dataset", task, "--max_prompts", "16", "--eval_task", task, "--eval_count", "16") == 0
        trained_on, asked = (
            {json.loads(line)["prompt"] for line in path.read_text().splitlines()}
            for path in (run / "samples.jsonl", run / "evaluation" / "start" / "samples.jsonl")
        )
        assert trained_on and len(asked) == 16 and not trained_on & asked

    def test_problems_that_are_trained_on_are_counted(
        self, train: Train, prompts: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert train("--eval_data", str(prompts), "--eval_count", "5") == 0
        assert told("5 questions of prompts ... training prompts", caplog.text)

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["--eval_data", "missing.jsonl"], 3, "no file 'missing.jsonl'"),
            (["--eval_task", "chain_sum"], 2, "reasoning_gym:NAME"),
            (["--eval_task", "reasoning_gym:a", "--eval_data", "PROMPTS"], 2, "eval_task ... eval_data"),
            (["--eval_task", "reasoning_gym:nothing"], 2, "nothing"),
        ],
    )
    def test_wrong_problems_stop_the_run_before_it_begins(
        self, train: Train, run: Path, prompts: Path, arguments: list[str], code: int, message: str, capsys: Any
    ) -> None:
        assert train(*[word.replace("PROMPTS", str(prompts)) for word in arguments]) == code
        assert told(message, capsys.readouterr().err) and not run.exists()


@pytest.mark.parametrize("more", [[], ["--lora_rank", "2"]], ids=["full", "lora"])
def test_models_of_the_run_are_let_go_before_the_trained_one_is_loaded(
    train: Train, prompts: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    models: list[weakref.ref[Any]] = []
    held: list[int] = []

    def loading(*args: Any, **kwargs: Any) -> Any:
        model = load_model(*args, **kwargs)
        models.append(weakref.ref(model))
        return model

    def evaluating(*args: Any) -> Any:
        held.append(sum(model() is not None for model in models))
        return evaluate(*args)

    monkeypatch.setattr("vopd.run.train.load_model", loading)
    monkeypatch.setattr("vopd.run.accuracy.evaluate", evaluating)
    assert train("--eval_data", str(prompts), *more) == 0
    assert held == [2, 0]  # student and teacher before the start model's evaluation, neither before the trained one's

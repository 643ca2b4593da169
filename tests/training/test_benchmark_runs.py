"""Accuracy during training: it is measured as `vopd eval` measures it, and leaves no trace in the training."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from messages import says, told
from vopd.errors import ConfigurationError, DataError
from vopd.evaluation.benchmarks import Protocol
from vopd.training import VOPDConfig
from vopd.training.monitoring.benchmark_runs import BenchmarkRuns, load_benchmarks

QUESTIONS = [{"problem": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(3, 8)]
SMALL = {
    "eval_benchmark_limit": 6,
    "eval_benchmark_steps": 2,
    "eval_benchmark_samples": 2,
    "per_device_eval_batch_size": 4,
    "max_steps": 3,
}
KEY = "eval_sums_avg@2"


@pytest.fixture
def sums(tmp_path: Path) -> str:
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return str(path)


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in record.items() if not name.startswith(("seconds", "tokens_per", "step_time"))
    }


@pytest.mark.parametrize("more", [{}, {"lora": True, "gradient_accumulation_steps": 2}], ids=["full", "lora"])
def test_training_is_the_same_to_the_bit_with_and_without(
    more: dict[str, Any], make_trainer: Callable[..., Any], sums: str, tmp_path: Path
) -> None:
    def run(name: str, **settings: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]], Any]:
        random.seed(5)
        adapters = {}
        if more.get("lora"):
            from peft import LoraConfig

            adapters = {"peft_config": LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])}
        rest = {key: value for key, value in more.items() if key != "lora"}
        trainer = make_trainer(trainer=adapters, output_dir=str(tmp_path / name), **(SMALL | rest | settings))
        trainer.train()
        assert trainer.model.training  # transformers leaves it so
        return weights(trainer), records(tmp_path / name), (torch.random.get_rng_state(), random.random())

    plain, log, state = run("plain")
    measured, log_too, state_too = run("measured", eval_benchmarks=[sums, "reasoning_gym:chain_sum"])
    assert all(torch.equal(measured[name], value) for name, value in plain.items())
    assert torch.equal(state[0], state_too[0]) and state[1] == state_too[1]
    steps = [without_times(record) for record in log_too if "loss" in record]
    assert steps == [without_times(record) for record in log]
    found = [record for record in log_too if KEY in record]
    assert [record["step"] for record in found] == [0, 2, 3]
    for record in found:
        for key in (KEY, "eval_chain_sum_avg@2"):
            assert 0 <= record[f"{key}_low"] <= record[key] <= record[f"{key}_high"] <= 1
    assert {path.name for path in (tmp_path / "measured" / "evaluation").iterdir()} == {
        "step-000000.jsonl", "step-000002.jsonl", "step-000003.jsonl",
    }  # fmt: skip


def test_a_kind_is_that_of_files(sums: str) -> None:
    """A benchmark that has a name is graded as it is defined."""
    args = VOPDConfig(use_cpu=True, eval_benchmark_kind="tags", eval_benchmarks=f"{sums},amc23={sums}")
    assert [benchmark.kind for benchmark in load_benchmarks(args)] == ["tags", "math"]


def test_answers_are_graded_logged_and_kept(
    make_trainer: Callable[..., Any], sums: str, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[int, int]] = []

    def scripted(trainer: Any, prompt_ids: Any, protocol: Protocol, seed: int) -> list[list[int]]:
        asked.append((len(prompt_ids), seed))
        texts = [trainer.tokenizer.decode(ids) for ids in prompt_ids]
        answers = [2 * int(text.split("What is ")[1].split()[0]) for text in texts]
        # Right for 3 and 5, wrong for the others; what follows the end token is no part of it.
        boxes = [f"\\boxed{{{answer if answer in (6, 10) else 1}}}" for answer in answers]
        return [[*trainer.tokenizer(box)["input_ids"], 1, 7] for box in boxes]

    monkeypatch.setattr("vopd.VOPDTrainer.draw", scripted)
    make_trainer(eval_benchmarks=sums, **(SMALL | {"max_steps": 1})).train()
    first, last = [record for record in records(tmp_path / "run") if KEY in record]
    assert first["step"] == 0 and last["step"] == 1
    assert first[KEY] == pytest.approx(0.4) and first[f"{KEY}_low"] < 0.4 < first[f"{KEY}_high"]
    assert first["eval_sums_format_rate"] == 1 and first["eval_sums_truncation_rate"] == 0
    # 10 completions in batches of 4, the last one filled up; the same draws at every step.
    assert [size for size, _ in asked] == [4] * 6
    assert asked[:3] == asked[3:] and len({seed for _, seed in asked}) == 3
    lines = [json.loads(line) for line in (tmp_path / "run/evaluation/step-000001.jsonl").read_text().splitlines()]
    assert len(lines) == 10 and [line["outcome"] for line in lines].count("right") == 4
    assert lines[0]["checkpoint"] == "step 1" and lines[0]["completion"] == r"\boxed{6}"
    assert "evaluation  sums avg@2 40.0 % [" in capsys.readouterr().err


def test_a_resumed_run_measures_what_the_uninterrupted_one_does(
    make_trainer: Callable[..., Any], sums: str, tmp_path: Path
) -> None:
    def run(name: str, resume: str | None = None) -> list[dict[str, Any]]:
        settings = SMALL | {"save_strategy": "steps", "save_steps": 1, "eval_benchmarks": [sums], "max_steps": 4}
        make_trainer(output_dir=str(tmp_path / name), **settings).train(resume_from_checkpoint=resume)
        return [without_times(record) for record in records(tmp_path / name)]

    whole = run("whole")
    assert [record["step"] for record in whole if KEY in record] == [0, 2, 4]
    for step in (2, 3):
        folder = tmp_path / f"from-{step}"
        shutil.copytree(tmp_path / "whole", folder)
        assert run(folder.name, str(folder / f"checkpoint-{step}")) == whole


def test_a_run_that_was_asked_to_end_leaves_its_accuracy_to_the_resumed_one(
    make_trainer: Callable[..., Any], sums: str, tmp_path: Path
) -> None:
    from transformers import TrainerCallback

    class Ends(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_save = control.should_training_stop = state.global_step == 2

    settings = SMALL | {"eval_benchmarks": [sums], "max_steps": 4, "save_strategy": "steps", "save_steps": 10}
    make_trainer(trainer={"callbacks": [Ends()]}, **settings).train()
    assert [record["step"] for record in records(tmp_path / "run") if KEY in record] == [0]
    make_trainer(**settings).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert [record["step"] for record in records(tmp_path / "run") if KEY in record] == [0, 2, 4]


def test_draws_follow_the_protocol_and_the_seed(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(max_completion_length=1)
    ids = trainer.tokenize(["a", "How many legs"])
    greedy = trainer.draw(ids, Protocol(top_k=1, max_new_tokens=6), 0)
    trainer.model.eval()
    with torch.no_grad():
        for prompt, completion in zip(ids, greedy):
            state = list(prompt)
            for token in completion:
                logits = trainer.model(input_ids=torch.tensor([state])).logits[0, -1, :300]
                assert token == int(logits.argmax())
                state.append(token)
    assert max(map(len, greedy)) > 1
    warm = Protocol(temperature=1.0, max_new_tokens=8)
    assert trainer.draw(ids, warm, 1) == trainer.draw(ids, warm, 1) != trainer.draw(ids, warm, 2)
    assert trainer.generation_config.max_new_tokens == 1 and trainer.generation_kwargs["max_new_tokens"] == 1


def test_an_engine_gets_its_rollout_settings_back(make_trainer: Callable[..., Any]) -> None:
    class Engine:
        temperature, top_p, top_k, min_p, repetition_penalty, max_completion_length = 1.0, 1.0, 0, 0.1, 1.1, 4
        structured_outputs_regex = "x"

        def __init__(self) -> None:
            self.generation_kwargs = {"stop_token_ids": [1], "logit_bias": {300: -100.0}, "presence_penalty": 1.0}

        def sync_weights(self) -> None:
            self.synced = True

        def generate(self, prompts: Any, **named: Any) -> Any:
            self.seen = {
                name: getattr(self, name)
                for name in (
                    *vars(Protocol()),
                    "min_p",
                    "repetition_penalty",
                    "max_completion_length",
                    "generation_kwargs",
                )
                if hasattr(self, name)
            }
            return prompts, [[5, 1] for _ in prompts], None, None

    trainer = make_trainer()
    engine = Engine()
    trainer.use_vllm, trainer.vllm_generation, trainer._last_loaded_step = True, engine, -1
    trainer._rollout_logprobs = "of the rollout"
    before = {name: getattr(engine, name) for name in dir(engine) if not name.startswith("_")}
    assert (
        trainer.draw([[3], [4]], Protocol(temperature=0.6, top_p=0.95, top_k=20, max_new_tokens=9), 0) == [[5, 1]] * 2
    )
    assert engine.seen == {
        "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": None, "repetition_penalty": 1.0,
        "max_completion_length": 9, "generation_kwargs": {"stop_token_ids": [1], "logit_bias": {300: -100.0}},
    }  # fmt: skip
    assert engine.synced and trainer._rollout_logprobs == "of the rollout"
    assert {name: getattr(engine, name) for name in before} == before


class TestPrompts:
    def test_questions_of_chat_data_go_through_the_template(
        self, make_trainer: Callable[..., Any], tiny_tokenizer: Any, sums: str
    ) -> None:
        import copy

        tokenizer = copy.deepcopy(tiny_tokenizer)
        tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}{{ mood }}"
        chats = [[{"role": "user", "content": f"{n}"}] for n in range(4)]
        trainer = make_trainer(
            prompts=chats, eval_benchmarks=[sums], chat_template_kwargs={"mood": "!"},
            trainer={"processing_class": tokenizer}, eval_benchmark_template="{problem} Think.",
        )  # fmt: skip
        (runs,) = [call for call in trainer.callback_handler.callbacks if isinstance(call, BenchmarkRuns)]
        (prepared,) = runs.prepared
        assert prepared.prompts[0].text == "[What is 3 + 3? Think.]!"
        assert prepared.prompts[0].ids == tokenizer("[What is 3 + 3? Think.]!")["input_ids"]

    def test_questions_among_the_training_prompts_are_told(
        self, make_trainer: Callable[..., Any], sums: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING, logger="vopd"):
            make_trainer(prompts=["What is 3 + 3?", "What is 4 + 4? Think.", "Hi"], eval_benchmarks=[sums])
        assert told("2 questions of sums ... training prompts", caplog.text)


def test_a_benchmark_without_readable_answers_is_told_once(
    make_trainer: Callable[..., Any], sums: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="vopd"):
        make_trainer(eval_benchmarks=[sums], **SMALL).train()
    assert caplog.text.count("most completions on sums give no readable answer") == 1
    assert r"'{problem} Put your final answer within \boxed{}.'" in caplog.text


class TestRefusals:
    def test_before_anything_is_loaded(self, make_trainer: Callable[..., Any], sums: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="unknown benchmark 'math501'"):
            make_trainer(eval_benchmarks="math501", model="no such model")
        (tmp_path / "other").mkdir()
        shutil.copy(sums, tmp_path / "other" / "sums.jsonl")
        with pytest.raises(ConfigurationError, match=says("eval_benchmarks ... 'sums'")):
            make_trainer(eval_benchmarks=[sums, str(tmp_path / "other" / "sums.jsonl")], model="no such model")

    def test_questions_that_leave_no_room(self, make_trainer: Callable[..., Any], sums: str) -> None:
        with pytest.raises(DataError, match=says("sums ... 512 positions")):
            make_trainer(eval_benchmarks=[sums], eval_benchmark_max_new_tokens=510)

    @pytest.mark.parametrize("name", ["steps", "samples", "limit", "max_new_tokens"])
    def test_numbers_below_one(self, name: str, make_trainer: Callable[..., Any]) -> None:
        with pytest.raises(ConfigurationError, match=says(f"eval_benchmark_{name} ... 1")):
            make_trainer(**{f"eval_benchmark_{name}": 0})


pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning")

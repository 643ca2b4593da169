from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from messages import told
from vopd.models import load_model, load_tokenizer

Train = Callable[..., int]


@pytest.fixture
def dry(train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What `vopd train --dry-run` prints; loading weights fails."""

    def forbidden(*given: Any, **settings: Any) -> None:
        raise AssertionError("a dry run loads no weights")

    def call(*more: str) -> str:
        with monkeypatch.context() as patched:
            patched.setattr("vopd.run.train.load_model", forbidden)
            assert train("--dry-run", *more) == 0
        return capsys.readouterr().out

    return call


def test_nothing_is_written(dry: Callable[..., str], run: Path) -> None:
    dry()
    assert not run.parent.exists()


@pytest.mark.parametrize("command", [["train", "--dry-run"], ["validate"]])
def test_of_several_processes_the_first_one_tells(
    train: Train, prompts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    prompts.write_text(prompts.read_text() * 2)
    for rank, repeats in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert train(*command[1:], command=command[0]) == 0
        told_by_rank = capsys.readouterr()
        assert told_by_rank.err.count("repeated prompts") == repeats and bool(told_by_rank.out) == bool(repeats)


@pytest.mark.parametrize(
    "more",
    [
        ["--max_prompt_length", "14"],
        ["--lora_rank", "2", "--dtype", "bfloat16", "--num_generations", "2", "--reward_funcs", "math"],
    ],
)
def test_the_run_begins_with_the_lines_of_the_dry_run(
    dry: Callable[..., str], train: Train, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    block = dry(*more).split("\n\n")[0]
    assert train(*more) == 0
    shown = capsys.readouterr().err
    assert f"{block}\nstep 1/2  50%" in shown
    assert told("watch ... runs/first --watch", block) and told("prompts ... dropped", block) == (more[1] == "14")


def test_shows_the_prompt_with_the_ids_that_training_sees(dry: Callable[..., str], tiny_student_dir: Path) -> None:
    text = dry("--prompt_template", "{problem} Think.\x1b[2J")
    prompt = "What is 0 + 3? Think.\x1b[2J"
    ids = load_tokenizer(tiny_student_dir)(prompt)["input_ids"]
    assert f"first prompt: {prompt!r}" in text and "\x1b" not in text
    assert f"its {len(ids)} token ids: {', '.join(map(str, ids))}" in text


def test_compares_vocabularies_and_end_tokens(dry: Callable[..., str]) -> None:
    text = dry()
    assert told("full_rkl ... torch ... cpu", text)
    assert told("common vocabulary ... 300", text)
    assert told("student ... 300 tokens ... 304 head rows ... 1 '<eos>' ... 0 '<pad>'", text)
    assert told("teacher ... 300 tokens ... 320 head rows", text)


@pytest.mark.parametrize(
    "more",
    [
        ["--max_steps", "-1", "--num_train_epochs", "2"],
        ["--max_steps", "-1", "--num_train_epochs", "1.5", "--gradient_accumulation_steps", "3"],
        ["--max_steps", "3"],
    ],
)
def test_steps_are_those_of_the_run(dry: Callable[..., str], train: Train, run: Path, more: list[str]) -> None:
    text = dry(*more)
    assert train(*more) == 0
    taken = json.loads((run / "trainer_state.json").read_text())["global_step"]
    assert told(f"steps ... {taken} ... per epoch", text)


def test_checkpoints_are_those_of_the_run(dry: Callable[..., str], train: Train, run: Path) -> None:
    more = ["--max_steps", "5", "--save_steps", "2"]
    text = dry(*more)
    assert train(*more) == 0
    assert f"{len(list(run.glob('checkpoint-*')))} checkpoints" in text
    assert "1 checkpoint in" in dry(*more, "--save_total_limit", "1")
    assert "0 checkpoints" in dry(*more, "--save_strategy", "no")


def test_memory_names_what_it_assumes_which_another_machine_may_choose_otherwise(dry: Callable[..., str]) -> None:
    assert told("passes in the weights' dtype and no gradient checkpointing", dry())
    planned = dry("--use_cpu", "true", "--bf16", "true", "--gradient_checkpointing", "true")
    assert told("bf16 passes and gradient checkpointing", planned)


def test_memory_of_a_token_budget_is_that_of_its_tokens_and_states_of_a_step_are_counted(
    dry: Callable[..., str],
) -> None:
    """Shorter sequences can fill a micro-batch in which a second one of the longest has no room."""

    def size(name: str, *more: str) -> float:
        batches = ("--per_device_train_batch_size", "8", "--max_completion_length", "100")
        found = re.search(rf"{name} +([\d.]+) MiB", dry(*batches, *more))
        return 0.0 if found is None else float(found.group(1))

    one, whole = size("activations", "--max_tokens_per_micro_batch", "1"), size("activations")
    nearly_two = size("activations", "--max_tokens_per_micro_batch", "200")
    assert 1.4 * one < nearly_two < 2 * one and whole == size("activations", "--max_tokens_per_micro_batch", "9999")
    assert whole == pytest.approx(8 * one, rel=0.1)
    assert size("teacher's states") == 0 < size("teacher's states", "--teacher_scoring", "step")


def test_memory_of_weights_is_exact(dry: Callable[..., str], tiny_teacher_dir: Path) -> None:
    size = sum(weight.numel() * 4 for weight in load_model(tiny_teacher_dir).parameters()) / (1 << 20)
    found = re.search(r"teacher's weights +([\d.]+) MiB", dry())
    assert found is not None and float(found.group(1)) == pytest.approx(size, abs=0.05)


def test_an_engine_that_is_not_here_is_noted(
    dry: Callable[..., str], train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = ("--use_vllm", "true", "--vllm_mode", "colocate")
    assert told("note ... vllm is not installed", dry(*engine))
    assert train(*engine) == 2
    assert told("vllm ... use_vllm", capsys.readouterr().err)


def test_what_training_would_refuse_is_refused(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--dry-run", "--max_prompts", "1") == 3
    assert told("1 prompt ... 2", capsys.readouterr().err)
    assert train("--dry-run", "--model", "nobody/no-such-model") == 4

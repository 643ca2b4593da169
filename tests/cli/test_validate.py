"""`vopd validate`: good settings pass, and every broken one is a single line with its exit code."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from messages import told
from vopd import cli
from vopd.models import load_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bad(tmp_path: Path, tiny_student_dir: Path, tiny_teacher_dir: Path) -> Path:
    """A folder of broken data and models."""
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "empty.jsonl").write_text("")
    (folder / "column.jsonl").write_text('{"text": "a"}\n')
    (folder / "number.jsonl").write_text('{"prompt": 5}\n')
    (folder / "blank.jsonl").write_text('{"prompt": " "}\n')
    (folder / "broken.jsonl").write_text('{"prompt": "a"\n')
    (folder / "two.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    (folder / "noise.parquet").write_bytes(b"no parquet")
    (folder / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}\n')
    (folder / "unreadable.jsonl").mkdir()
    (folder / "no_answer.jsonl").write_text('{"problem": "a"}\n')
    shutil.copytree(tiny_teacher_dir, folder / "swapped")
    vocabulary = json.loads((folder / "swapped" / "tokenizer.json").read_text())
    ids = vocabulary["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (folder / "swapped" / "tokenizer.json").write_text(json.dumps(vocabulary))
    shutil.copytree(tiny_student_dir, folder / "endless")
    tokenizer = load_tokenizer(tiny_student_dir)
    tokenizer.pad_token = tokenizer.eos_token = None
    vocabulary = json.loads((folder / "endless" / "tokenizer.json").read_text())
    vocabulary["added_tokens"] = []
    tokenizer.save_pretrained(folder / "endless")
    _without_special_tokens(folder / "endless")
    shutil.copytree(tiny_student_dir, folder / "configless")
    (folder / "configless" / "config.json").unlink()
    shutil.copytree(tiny_student_dir, folder / "tokenless")
    for path in (folder / "tokenless").glob("tokenizer*"):
        path.unlink()
    shutil.copytree(tiny_student_dir, folder / "small_head")
    config = json.loads((folder / "small_head" / "config.json").read_text())
    (folder / "small_head" / "config.json").write_text(json.dumps({**config, "vocab_size": 200}))
    return folder


def _without_special_tokens(folder: Path) -> None:
    """A tokenizer in which nothing pads and nothing ends, under any of the names that are looked for."""
    text = (folder / "tokenizer.json").read_text().replace("<pad>", "<one>").replace("<eos>", "<two>")
    (folder / "tokenizer.json").write_text(text)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for name in ("pad_token", "eos_token", "added_tokens_decoder", "extra_special_tokens"):
        settings.pop(name, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


# Broken settings (BAD is the folder above), exit code, what the line says.
BROKEN: list[tuple[dict[str, Any], int, str]] = [
    ({"lerning_rate": 1e-5}, 2, "'lerning_rate' ... 'learning_rate'"),
    ({"nonsense": 1}, 2, "'nonsense' ... --help"),
    ({"estimator": "vodp"}, 2, "'vodp' ... 'vopd'"),
    ({"estimator": "zzz"}, 2, "'zzz' ... opd, vopd"),
    ({"estimator": "vopd_top_k", "top_k": 5, "loss_top_k": 5}, 2, "top_k ... loss_top_k=5"),
    ({"beta": 0.5}, 2, "beta ... estimator"),
    ({"loss_top_k": 5}, 2, "loss_top_k ... 'full_rkl'"),
    ({"estimator": "vopd_top_k"}, 2, "'vopd_top_k' ... loss_top_k"),
    ({"estimator": "vopd_top_k", "loss_top_k": 301}, 2, "loss_top_k=301 ... 300"),
    ({"estimator": "vopd_top_k", "loss_top_k": 0}, 2, "loss_top_k ... 1"),
    ({"learning_rate": "fast"}, 2, "learning_rate ... number ... 'fast'"),
    ({"max_steps": 1.5}, 2, "max_steps ... whole number ... 1.5"),
    ({"temperature": 0}, 2, "temperature ... above 0"),
    ({"estimator": "vopd", "top_p": 0.9}, 2, "remove top_p"),
    ({"importance_sampling": True}, 2, "importance_sampling ... use_vllm=true"),
    ({"importance_cap": 0.1}, 2, "importance_cap ... 1"),
    ({"run_name": "../outside"}, 2, "run name '../outside' ... letters"),
    ({"lora_rank": -1}, 2, "lora_rank ... 0 ... -1"),
    ({"lora_rank": 4, "lora_target_modules": ["lm_head"]}, 2, "lora_target_modules ... student's output head"),
    ({"lora_rank": 4, "lora_target_modules": ["no_such"]}, 2, "'no_such'"),
    ({"lora_rank": 4, "lora_target_modules": ["embed_tokens"], "use_vllm": True}, 2, "embedding ... use_vllm=false"),
    ({"lora_rank": 4, "quantization": "4bit", "use_vllm": True}, 2, "quantized ... use_vllm=false ... quantization"),
    ({"report_to": "wandbd"}, 2, "'wandbd' ... report_to ... 'wandb'"),
    ({"report_to": "tensorboard"}, 2, "report_to=tensorboard ... install"),
    ({"dtype": "float8"}, 2, "dtype 'float8' ... float32"),
    ({"prompt_template": "{text}"}, 2, "{text} ... problem, answer"),
    ({"chat_template": True}, 2, "no chat template ... chat_template"),
    ({"thinking": True}, 2, "thinking ... chat_template=true"),
    ({"model": None}, 2, "model ... text ... None"),
    ({"trust_remote_code": True}, 2, "trust_remote_code ... code"),
    ({"dataset": [{"source": "a.jsonl", "wieght": 2}, "b.jsonl"]}, 2, "'wieght'"),
    ({"dataset": "reasoning_gym:no_such_task"}, 2, "no_such_task"),
    ({"eval_task": "chain_sum"}, 2, "reasoning_gym:NAME"),
    ({"teacher_model": "self:base", "teacher_prompt_template": "{problem} {answer}"}, 2, "self:base ... lora_rank"),
    ({"dataset": "BAD/missing.jsonl"}, 3, "no file ... missing.jsonl"),
    ({"model": "nobody/far", "chat_template": True, "dataset": "BAD/missing.jsonl"}, 3, "no file ... missing.jsonl"),
    ({"dataset": "BAD/empty.jsonl"}, 3, "no rows"),
    ({"dataset": "BAD/column.jsonl"}, 3, "prompt, messages ... problem or question ... text"),
    ({"dataset": "BAD/number.jsonl"}, 3, "line 1 ... prompt ... int ... text"),
    ({"dataset": "BAD/blank.jsonl"}, 3, "every prompt ... empty"),
    ({"dataset": "BAD/broken.jsonl"}, 3, "line 1 ... JSON"),
    ({"dataset": "BAD/noise.parquet"}, 3, "parquet"),
    ({"dataset": "BAD/latin.jsonl"}, 3, "UTF-8"),
    ({"dataset": "BAD/unreadable.jsonl"}, 3, "unreadable.jsonl ... no data files"),
    ({"dataset": "BAD/two.jsonl", "per_device_train_batch_size": 4}, 3, "2 prompts ... 4"),
    ({"max_prompt_length": 1}, 3, "more than 1 token ... shortest"),
    ({"max_completion_length": 510}, 3, "prompts.jsonl ... 512 positions ... max_completion_length=510"),
    ({"max_completion_length": 512}, 2, "max_completion_length=512 ... 512 positions"),
    ({"eval_data": "BAD/no_answer.jsonl"}, 3, "answer"),
    ({"model": "./no/such/folder"}, 4, "no model folder ... './no/such/folder'"),
    ({"model": "BAD/configless"}, 4, "no config.json"),
    ({"model": "BAD/tokenless"}, 4, "no tokenizer"),
    ({"model": "BAD/endless"}, 4, "padding ... end token"),
    ({"model": "BAD/small_head"}, 4, "student's ... 200 rows ... 300"),
    ({"teacher_model": "BAD/swapped"}, 4, "student ... teacher ... different vocabularies"),
]  # fmt: skip


def _placed(value: Any, bad: Path) -> Any:
    return value.replace("BAD", str(bad)) if isinstance(value, str) else value


@pytest.fixture
def base(tiny_student_dir: Path, tiny_teacher_dir: Path, prompts: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(tiny_student_dir), "teacher_model": str(tiny_teacher_dir), "dataset": str(prompts),
        "max_completion_length": 4, "per_device_train_batch_size": 2, "output_dir": str(tmp_path / "runs"),
    }  # fmt: skip


def validate(path: Path, settings: dict[str, Any]) -> int:
    path.write_text(yaml.safe_dump(settings))
    return cli.main(["validate", "--config", str(path)])


def test_each_broken_configuration_is_one_clear_line_with_its_exit_code(
    base: dict[str, Any], bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(BROKEN) >= 25
    found = []
    for settings, code, message in BROKEN:
        placed = {name: _placed(value, bad) for name, value in settings.items()}
        got = validate(tmp_path / "broken.yaml", {**base, **placed})
        shown = capsys.readouterr()
        lines = [line for line in shown.err.splitlines() if line.startswith("vopd: error:")]
        if got != code or len(lines) != 1 or not told(message, lines[0]) or told("valid", shown.out):
            found.append((settings, got, lines))
    assert found == []
    assert not (tmp_path / "runs").exists()


def test_good_settings_are_told_to_be_good(
    base: dict[str, Any], tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert validate(tmp_path / "good.yaml", {**base, "eval_data": str(prompts), "lora_rank": 2}) == 0
    text = capsys.readouterr().out
    for facts in ("common vocabulary ... 300", "prompts ... 16", "accuracy ... prompts ... 16 problems"):
        assert told(facts, text)
    assert text.splitlines()[-1] == "the settings are valid"
    assert not (tmp_path / "runs").exists()


def test_what_training_accepts_with_care_is_noted(
    base: dict[str, Any], tmp_path: Path, tiny_student_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No padding token but the end token, other end tokens, an engine that is not here: right, but worth a line."""
    student = tmp_path / "unpadded"
    shutil.copytree(tiny_student_dir, student)
    text = (student / "tokenizer.json").read_text().replace("<pad>", "<one>")
    (student / "tokenizer.json").write_text(text)
    settings = json.loads((student / "tokenizer_config.json").read_text())
    (student / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "<eos>"}))
    teacher = tmp_path / "teacher"
    shutil.copytree(base["teacher_model"], teacher)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(student / name, teacher / name)
    (teacher / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 42]}))
    assert validate(tmp_path / "a.yaml", {**base, "model": str(student), "teacher_model": str(teacher),
                                          "use_vllm": True}) == 0  # fmt: skip
    text = capsys.readouterr().out
    assert told("student ... EOS ... padding", text)
    assert told("teacher ... 1 (<eos>) ... 42", text)
    assert told("vllm ... not installed", text)


def test_what_only_the_hub_has_is_named_and_passed_over(
    base: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert validate(tmp_path / "far.yaml", {**base, "teacher_model": "nobody/far", "dataset": "nobody/prompts"}) == 0
    text = capsys.readouterr().out
    assert told("not checked ... nobody/far", text) and "nobody/prompts" in text
    assert cli.main(["train", "--config", str(tmp_path / "far.yaml"), "--dry-run"]) == 4


def test_prompts_that_need_the_template_of_a_student_that_is_not_here(
    base: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert validate(tmp_path / "far.yaml", {**base, "model": "nobody/far", "chat_template": True}) == 0
    assert told("prompts not checked ... chat template", capsys.readouterr().out)


def test_packages_that_are_not_here_are_noted_but_training_needs_them(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # which needs no GPU
    for package in ("bitsandbytes", "triton"):
        monkeypatch.setitem(sys.modules, package, None)
    quantized = ["--lora_rank", "2", "--quantization", "8bit"]
    assert train(*quantized, "--loss_backend", "triton", command="validate") == 0
    text = capsys.readouterr().out
    assert told("bitsandbytes is not installed", text) and told("triton is not installed", text)
    for more in ([], ["--dry-run"]):
        assert train(*quantized, *more) == 2
        assert told("bitsandbytes ... install", capsys.readouterr().err)


def test_the_same_word_for_word_as_training(train: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--estimator", "vodp"], ["--dataset", "none.jsonl"], ["--model", "./none"]):
        codes = [train(*arguments, command=command) for command in ("train", "validate")]
        first, second = capsys.readouterr().err.splitlines()
        assert codes[0] == codes[1] > 0 and first == second


def test_benchmarks_out_of_reach_are_named_and_the_others_checked(
    train: Callable[..., int], prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--eval_benchmarks", f"math500,{prompts}", command="validate") == 0
    text = capsys.readouterr().out
    assert told("not on this machine ... math500", text) and told("accuracy ... prompts ... 100 steps", text)

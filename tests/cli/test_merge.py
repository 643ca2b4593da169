"""`vopd merge`: the merged model is the adapted one, loads everywhere, and what cannot be merged is one clear line."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from messages import told
from vopd import cli
from vopd.models import load_model, load_tokenizer

IDS = torch.arange(40, 60).unsqueeze(0)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits.float()
    return found


def save_adapter(base: Path, folder: Path, config: Any) -> Path:
    """An adapter without tokenizer and card, far enough from its base that nobody takes one for the other."""
    import peft

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tied weights, which are to be refused
        model = peft.get_peft_model(load_model(base), config)
    for name, weight in model.named_parameters():
        if weight.requires_grad and "lora_A" not in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture
def adapter(tiny_teacher_dir: Path, tmp_path: Path) -> Path:
    from peft import LoraConfig

    return save_adapter(tiny_teacher_dir, tmp_path / "adapter", LoraConfig(r=4, target_modules="all-linear"))


def merge(adapter: Path | str, output: Path, *more: str) -> int:
    return cli.main(["merge", "--model", str(adapter), "--output", str(output), *more])


def test_the_adapter_of_a_run_is_merged_and_evaluated(
    train: Callable[..., int], run: Path, prompts: Path, tiny_student_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--lora_rank", "4", "--learning_rate", "0.1") == 0
    next_commands = capsys.readouterr().out
    assert told(f"vopd merge --model {run / 'model'} --output {run / 'merged'}", next_commands)
    (run / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 42]}))
    output = run / "merged"
    assert merge(run / "model", output) == 0
    assert told("merged ... student ... float32 ... vopd eval", " ".join(capsys.readouterr().out.split()))
    merged, adapted = AutoModelForCausalLM.from_pretrained(output).eval(), load_model(run / "model")
    torch.testing.assert_close(logits(merged), logits(adapted), atol=1e-4, rtol=1e-4)
    assert (logits(merged) - logits(load_model(tiny_student_dir))).abs().max() > 0.1
    assert merged.generation_config.eos_token_id == [1, 42] and len(load_tokenizer(output)) == 300
    files = {path.name for path in output.iterdir()}
    assert "model.safetensors" in files and not any("adapter" in name for name in files)
    card = ModelCard.load(output / "README.md")
    assert card.data.library_name == "transformers" and told("estimator ... full_rkl", card.text)
    assert told("adapter model ... merged into student ... float32 ... PEFT", card.text)
    assert cli.main([
        "eval", "--model", str(output), "--data", str(prompts), "--count", "2", "--samples", "1",
        "--max_new_tokens", "2", "--output_dir", str(run.parent),
    ]) == 0  # fmt: skip


def test_dtype_card_and_tokenizer_of_an_adapter_from_elsewhere(
    adapter: Path, tiny_teacher_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "half"
    load_model(tiny_teacher_dir).bfloat16().save_pretrained(base)
    load_tokenizer(tiny_teacher_dir).save_pretrained(base)
    (tmp_path / "resolved_config.yaml").write_text("quantization: 4bit  # command line\n")
    whole = logits(load_model(adapter))
    for more, dtype, tolerance in (([], torch.bfloat16, 0.05), (["--dtype", "float32"], torch.float32, 0.02)):
        output = tmp_path / str(dtype)
        output.mkdir()  # an empty folder is as good as a new one
        assert merge(adapter, output, "--base_model", str(base), *more) == 0
        assert told("note ... 4bit ... " + str(dtype).removeprefix("torch."), capsys.readouterr().out)
        merged = load_model(output)
        assert {weight.dtype for weight in merged.parameters()} == {dtype}
        assert (logits(merged) - whole).abs().max() < tolerance * whole.abs().max()
        assert len(load_tokenizer(output)) == 300
        assert told("Note ... 4bit", ModelCard.load(output / "README.md").text)


def test_rounding_is_noted_a_link_is_followed_and_an_unreadable_card_replaced(
    adapter: Path, tiny_teacher_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "resolved_config.yaml").write_text("dtype: float32\nquantization: null\n")
    (adapter / "README.md").write_text("---\n[: no mapping\n---\n# Card\n")
    (tmp_path / "place").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "place")
    assert merge(adapter, tmp_path / "link", "--dtype", "bfloat16") == 0
    assert told("note ... float32 ... bfloat16 ... rounds ... --dtype float32", capsys.readouterr().out)
    assert (tmp_path / "place" / "model.safetensors").is_file()
    assert told("merged into ... bfloat16", ModelCard.load(tmp_path / "place" / "README.md").text)
    assert merge(adapter, tmp_path / "whole", "--dtype", "float32") == 0
    assert "note:" not in capsys.readouterr().out


def test_an_adapter_of_the_hub(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a download leaves it in the cache."""
    cached = tmp_path / "cache" / "models--me--adapter"
    shutil.copytree(adapter, cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert merge("me/adapter", tmp_path / "merged") == 0
    torch.testing.assert_close(
        logits(load_model(tmp_path / "merged")), logits(load_model(adapter)), atol=1e-4, rtol=1e-4
    )


class TestRefusals:
    @pytest.fixture
    def refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
        """refused(adapter, code, facts): one line with these facts, and nothing written."""

        def call(adapter: Path | str, code: int, facts: str, *more: str) -> None:
            assert merge(adapter, tmp_path / "merged", *more) == code
            lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vopd: error:")]
            assert len(lines) == 1 and told(facts, lines[0]), lines
            assert not [path for path in tmp_path.iterdir() if "merged" in path.name]

        return call

    def test_what_is_no_adapter(self, refused: Callable[..., None], tiny_student_dir: Path, tmp_path: Path) -> None:
        refused(tiny_student_dir, 4, "whole model ... nothing to merge")
        (tmp_path / "empty").mkdir()
        refused(tmp_path / "empty", 4, "adapter_config.json ... runs/NAME/model")
        refused("nobody/adapter", 4, "nobody/adapter ... no folder")

    def test_another_base(self, refused: Callable[..., None], adapter: Path, tiny_student_dir: Path) -> None:
        refused(adapter, 4, "adapter ... base model ... size mismatch", "--base_model", str(tiny_student_dir))
        refused(adapter, 4, "./gone ... --base_model", "--base_model", "./gone")
        refused(adapter, 2, "dtype 'int8' ... bfloat16", "--dtype", "int8")
        (adapter / "adapter_model.safetensors").write_bytes(b"")
        refused(adapter, 4, "adapter_model.safetensors ... 0 bytes")

    def test_weights_that_are_not_there(self, refused: Callable[..., None], adapter: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(adapter / "adapter_model.safetensors")
        weights.pop(next(iter(weights)))
        save_file(weights, adapter / "adapter_model.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # as outside of tests, where PEFT only warns
            refused(adapter, 4, "missing adapter keys")

    def test_what_peft_cannot_merge(self, refused: Callable[..., None], tiny_student_dir: Path, tmp_path: Path) -> None:
        from peft import LoraConfig, PromptTuningConfig

        prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
        refused(save_adapter(tiny_student_dir, tmp_path / "prompt", prompt), 2, "PROMPT_TUNING ... PEFT")
        tied = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
        refused(save_adapter(tiny_student_dir, tmp_path / "tied", tied), 2, "output head ... embedding")
        unknown = LoraConfig(r=2, target_modules=["q_proj"])
        folder = save_adapter(tiny_student_dir, tmp_path / "nan", unknown)
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "adapter_model.safetensors")
        save_file(
            {name: weight * float("nan") for name, weight in weights.items()}, folder / "adapter_model.safetensors"
        )
        refused(folder, 2, "NaNs")

    def test_a_folder_that_is_in_use(self, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "used").mkdir()
        (tmp_path / "used" / "notes").write_text("precious")
        assert merge(adapter, tmp_path / "used") == 2
        assert told("used ... --output", capsys.readouterr().err)
        assert [path.name for path in (tmp_path / "used").iterdir()] == ["notes"]

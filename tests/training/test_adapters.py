"""A student or teacher that is the folder of an adapter, in Python; and updates that the weights' dtype swallows."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from messages import says
from vopd.errors import ConfigurationError, MismatchError
from vopd.experiments.measure import ModelPair
from vopd.experiments.one_run import _is_trained
from vopd.models import load_model, load_skeleton, load_tokenizer, read_head
from vopd.training.monitoring.rounding import RoundedUpdates, rounded_away
from vopd.training.saving.card import card_facts

KINDS: dict[str, Callable[[], Any]] = {
    "LoRA": lambda: peft.LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM"),
    "rsLoRA": lambda: peft.LoraConfig(r=3, use_rslora=True, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "DoRA": lambda: peft.LoraConfig(r=3, use_dora=True, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "tokens": lambda: peft.LoraConfig(
        r=3, trainable_token_indices=[3, 4], target_modules=["q_proj"], task_type="CAUSAL_LM"
    ),
    "whole modules": lambda: peft.LoraConfig(
        r=3, modules_to_save=["norm"], target_modules=["q_proj"], task_type="CAUSAL_LM"
    ),
    "VeRA": lambda: peft.VeraConfig(r=8, target_modules=["q_proj"], task_type="CAUSAL_LM"),
}
IDS = torch.tensor([[40, 3, 41, 4, 42]])


@pytest.fixture
def save(tiny_student_dir: Path, tmp_path: Path) -> Callable[..., Any]:
    """save(config): the student with an adapter of that kind far from its base, which is saved in tmp_path/adapter."""

    def make(config: Any, base: str | Path = tiny_student_dir) -> Any:
        torch.manual_seed(3)
        adapted = peft.get_peft_model(load_model(base), config)
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.data += torch.randn_like(weight) / 4
        adapted.save_pretrained(tmp_path / "adapter")
        return adapted.eval()

    return make


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_itself_is_trained_on(
    kind: str, save: Callable[..., Any], make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    adapted = save(KINDS[kind]())
    skeleton = load_skeleton(tmp_path / "adapter", trainable=True)
    trainer = make_trainer(model=tmp_path / "adapter")
    assert torch.equal(trainer.model.eval()(IDS).logits, adapted(IDS).logits)
    trained = {name: weight.requires_grad for name, weight in trainer.model.named_parameters()}
    assert any(trained.values()) and trained == {
        name: weight.requires_grad for name, weight in skeleton.named_parameters()
    }
    trainer.save_model(str(tmp_path / "saved"))
    before, after = weights_of(tmp_path / "adapter"), weights_of(tmp_path / "saved")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    trainer.train()
    trainer.save_model(str(tmp_path / "trained"))
    moved = weights_of(tmp_path / "trained")
    assert any(not torch.equal(before[name], moved[name]) for name in before)
    card = (tmp_path / "trained" / "README.md").read_text()
    assert "| student | adapter, an adapter of student |" in card


def test_the_base_is_found_from_everywhere(
    save: Callable[..., Any], make_trainer: Callable[..., Any], tiny_student_dir: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    shutil.copytree(tiny_student_dir, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    for model, more in (("base", {"peft_config": KINDS["LoRA"]()}), (save(KINDS["LoRA"](), "base"), {})):
        make_trainer(model=model, trainer=more).save_model(str(tmp_path / "saved"))
        config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(tmp_path / "base")


def test_teachers_that_are_adapters(
    save: Callable[..., Any], make_trainer: Callable[..., Any], tmp_path: Path, tiny_student_dir: Path
) -> None:
    adapted = save(KINDS["DoRA"]())
    trainer = make_trainer(trainer={"teacher_model": tmp_path / "adapter"})
    assert torch.equal(trainer.teacher_model(IDS).logits, adapted(IDS).logits)
    assert not any(weight.requires_grad for weight in trainer.teacher_model.parameters())
    assert card_facts(trainer, "a")["teachers"] == {"default": (str(tmp_path / "adapter"), None)}
    pair = ModelPair(str(tmp_path / "adapter"), str(tmp_path / "adapter"), teacher_dtype="float32", device="cpu")
    assert torch.equal(pair.student(tmp_path / "adapter")(IDS).logits, adapted(IDS).logits)
    assert len(pair.tokenizer) == len(load_tokenizer(tiny_student_dir))  # of its base, beside which it lies


def test_a_run_that_ended_with_an_adapter_is_not_trained_again(save: Callable[..., Any], tmp_path: Path) -> None:
    save(KINDS["LoRA"]())
    (tmp_path / "adapter").rename(tmp_path / "model")
    assert not _is_trained(tmp_path)
    (tmp_path / "trainer_state.json").write_text("{}")
    assert _is_trained(tmp_path)


def test_one_path_at_two_revisions_is_two_teachers(
    make_trainer: Callable[..., Any], tiny_teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "cache" / "models--me--teacher"
    (cached / "refs").mkdir(parents=True)
    for name, commit in (("main", "a" * 40), ("other", "b" * 40)):
        shutil.copytree(tiny_teacher_dir, cached / "snapshots" / commit)
        (cached / "refs" / name).write_text(commit)
    other = load_model(tiny_teacher_dir)
    other.get_output_embeddings().weight.data *= 0.5
    other.save_pretrained(cached / "snapshots" / ("b" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    teachers = {"teacher_model": "me/teacher", "teachers": {"first": "me/teacher"}}
    rows = Dataset.from_list([{"prompt": f"{number} + 2 =", "teacher": "first"} for number in range(4)])
    trainer = make_trainer(trainer={**teachers, "train_dataset": rows}, teacher_model_revision="other")
    first, default = (trainer.teachers.placed[name].teacher.model for name in ("first", "default"))
    assert torch.equal(read_head(default, "teacher").weight, read_head(first, "teacher").weight * 0.5)


class TestRefusals:
    def test_what_cannot_be_loaded(
        self, save: Callable[..., Any], make_trainer: Callable[..., Any], tiny_student_dir: Path, tmp_path: Path
    ) -> None:
        save(KINDS["LoRA"]())
        broken = Path(shutil.copytree(tiny_student_dir, tmp_path / "broken"))
        (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-9])
        with pytest.raises(MismatchError, match=says("student cannot be loaded ... model.safetensors is cut off")):
            make_trainer(model=str(broken))
        with pytest.raises(MismatchError, match=says("teacher cannot be loaded ... model.safetensors is cut off")):
            make_trainer(trainer={"teacher_model": str(broken)})
        (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
        with pytest.raises(MismatchError, match=says("student ... adapter ... no weights")):
            make_trainer(model=str(tmp_path / "adapter"))

    def test_weights_that_the_base_has_no_place_for(self, save: Callable[..., Any], tmp_path: Path) -> None:
        from safetensors.torch import save_file

        save(KINDS["LoRA"]())
        weights = weights_of(tmp_path / "adapter")
        more = {name.replace("layers.1.", "layers.9."): weight.clone() for name, weight in weights.items()}
        save_file(more | weights, tmp_path / "adapter" / "adapter_model.safetensors")
        with pytest.raises(MismatchError, match=says("14 weights ... no layer for ... base")):
            load_model(tmp_path / "adapter")

    def test_an_adapter_that_was_not_loaded_for_training(
        self, save: Callable[..., Any], make_trainer: Callable[..., Any], tiny_student_dir: Path, tmp_path: Path
    ) -> None:
        save(KINDS["LoRA"]())
        frozen = peft.PeftModel.from_pretrained(load_model(tiny_student_dir), str(tmp_path / "adapter"))
        with pytest.raises(ConfigurationError, match=says("gradient ... is_trainable=True")):
            make_trainer(model=frozen)


def test_no_warning_of_a_library_reaches_the_user(make_trainer: Callable[..., Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_trainer(trainer={"peft_config": KINDS["LoRA"]()}, activation_checkpointing=True).train()


def test_adapters_of_a_quantized_student_keep_their_precision(
    save: Callable[..., Any], make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    """bitsandbytes has no part in this: TRL rounds the adapters by what the model says of itself."""
    save(KINDS["LoRA"]())
    student = load_model(tmp_path / "adapter", trainable=True)
    student.get_base_model().is_loaded_in_4bit = True
    student.get_base_model().quantization_method = "bitsandbytes"
    make_trainer(model=student).save_model(str(tmp_path / "saved"))
    before, after = weights_of(tmp_path / "adapter"), weights_of(tmp_path / "saved")
    assert all(torch.equal(before[name], after[name]) for name in before)


class TestRoundedUpdates:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("rate", [1e-6, 1e-4, 1e-3])
    def test_the_share_is_that_of_a_step_of_adam(self, dtype: torch.dtype, rate: float) -> None:
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(20_000, generator=generator) * torch.logspace(-5, 0, 20_000)
        weight = torch.nn.Parameter(values.to(dtype))
        before = weight.detach().clone()
        share, enough = rounded_away([weight], rate)
        weight.grad = torch.ones_like(weight) * 64  # far above Adam's epsilon
        torch.optim.AdamW([weight], lr=rate, weight_decay=0.0).step()
        stuck = (weight == before) & (before != 0)
        assert abs(share - float(stuck.float().mean())) < 0.02
        assert abs(rounded_away([weight], enough)[0] - 0.5) < 0.1

    def test_what_always_moves(self) -> None:
        assert rounded_away([torch.ones(100), torch.zeros(100, dtype=torch.bfloat16)], 1e-9)[0] == 0
        assert rounded_away([torch.ones(300), torch.ones(100, dtype=torch.bfloat16)], 1e-9)[0] == 0.25

    @pytest.mark.parametrize(("rate", "kind", "lines"), [
        (1e-6, torch.optim.AdamW, 1), (0.1, torch.optim.AdamW, 0), (1e-6, torch.optim.SGD, 0),
    ])  # fmt: skip
    def test_when_it_is_said(self, rate: float, kind: Any, lines: int, caplog: pytest.LogCaptureFixture) -> None:
        class State:
            is_world_process_zero = True

        optimizer = kind([torch.nn.Parameter(torch.ones(100, dtype=torch.bfloat16))], lr=rate)
        with caplog.at_level("WARNING", logger="vopd"):
            RoundedUpdates().on_train_begin(None, State(), None, optimizer=optimizer)
        assert len(caplog.records) == lines
        assert all("100%" in record.getMessage() and "0.004" in record.getMessage() for record in caplog.records)

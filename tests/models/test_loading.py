from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import STUDENT_ROWS
from messages import says
from vopd.errors import ConfigurationError, MismatchError
from vopd.models import end_ids, load_model, load_skeleton, load_tokenizer
from vopd.run.lora import check_lora_options
from vopd.run.plan import TrainOptions


@pytest.fixture
def copied(tiny_student_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_student_dir, tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_loads_model_and_tokenizer_of_a_folder(tiny_student_dir: Path) -> None:
    model, tokenizer = load_model(tiny_student_dir), load_tokenizer(tiny_student_dir)
    assert not model.training and model.dtype == torch.float32
    assert tokenizer.padding_side == "left" and tokenizer.pad_token == "<pad>"


def test_dtype(tiny_student_dir: Path) -> None:
    assert load_model(tiny_student_dir, dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(ConfigurationError, match="'int8'; choose one of auto, float32"):
        load_model(tiny_student_dir, dtype="int8")


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
class TestClearErrors:
    def test_missing_folder(self, load, tmp_path: Path) -> None:
        with pytest.raises(MismatchError, match=says(f"no model folder '{tmp_path / 'nothing'}'")):
            load(tmp_path / "nothing")

    def test_folder_without_config(self, load, tmp_path: Path) -> None:
        with pytest.raises(MismatchError, match=r"no config\.json"):
            load(tmp_path)

    def test_broken_config(self, load, copied: Path) -> None:
        (copied / "config.json").write_text('{"model_type": ')
        with pytest.raises(MismatchError, match="not a valid JSON file"):
            load(copied)

    def test_unreachable_hub_id(self, load) -> None:
        with pytest.raises(MismatchError, match=says("'nobody/no-such-model-at-all' ... hub id")):
            load("nobody/no-such-model-at-all")


def test_code_of_the_repository_is_refused_and_named(copied: Path) -> None:
    edit(
        copied / "config.json",
        model_type="home_made",
        auto_map={
            "AutoConfig": "code.HomeMadeConfig",
            "AutoModelForCausalLM": "code.HomeMade",
        },
    )
    (copied / "code.py").write_text("raise SystemExit('this code must never run')")
    with pytest.raises(MismatchError, match=says("code ... trust_remote_code")):
        load_model(copied)


def test_missing_weights_are_an_error_and_not_random_numbers(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MismatchError, match=says("1 of the model's weights ... model.layers.1.mlp.up_proj.weight")):
        load_model(copied)


def test_missing_weight_file(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    with pytest.raises(MismatchError, match="cannot load the model"):
        load_model(copied)


def test_missing_tokenizer_files(copied: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copied / name).unlink()
    with pytest.raises(MismatchError, match="tokenizer"):
        load_tokenizer(copied)


class TestPadToken:
    def test_takes_an_existing_token_that_is_not_the_end(self, copied: Path) -> None:
        edit(copied / "tokenizer_config.json", pad_token=None)
        tokenizer = load_tokenizer(copied)
        assert (tokenizer.pad_token, len(tokenizer)) == ("<pad>", 300)

    def test_falls_back_to_the_end_token_and_never_grows_the_vocabulary(self, copied: Path) -> None:
        edit(copied / "tokenizer_config.json", pad_token=None)
        text = (copied / "tokenizer.json").read_text().replace("<pad>", "<spare>")
        (copied / "tokenizer.json").write_text(text)
        tokenizer = load_tokenizer(copied)
        assert (tokenizer.pad_token, len(tokenizer)) == ("<eos>", 300)

    def test_neither_pad_nor_end(self, copied: Path) -> None:
        edit(copied / "tokenizer_config.json", pad_token=None, eos_token=None)
        text = (copied / "tokenizer.json").read_text().replace("<pad>", "<spare>")
        (copied / "tokenizer.json").write_text(text)
        with pytest.raises(MismatchError, match=says("padding ... end token")):
            load_tokenizer(copied)


def test_an_adapter_folder_loads_its_base_model_and_the_adapter(tiny_student_dir: Path, tmp_path: Path) -> None:
    import peft

    base = load_model(tiny_student_dir)
    adapted = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[40, 41, 42]])
    loaded = load_model(tmp_path / "adapter")
    assert torch.allclose(loaded(ids).logits, adapted(ids).logits, atol=1e-5)
    assert not torch.allclose(loaded(ids).logits, load_model(tiny_student_dir)(ids).logits, atol=1e-2)


class TestQuantization:
    @pytest.mark.parametrize(("name", "field"), [("8bit", "load_in_8bit"), ("4bit", "load_in_4bit")])
    def test_linear_layers_are_asked_for_in_few_bits_where_they_will_be(
        self, name: str, field: str, tiny_student_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import transformers

        monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
        given: dict[str, object] = {}
        plain = load_model(tiny_student_dir)

        def from_pretrained(source: object, **settings: object) -> object:
            given.update(settings)
            return plain, {"missing_keys": []}

        monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
        assert load_model(tiny_student_dir, quantization=name, device="cpu") is plain
        assert getattr(given["quantization_config"], field) is True and given["device_map"] == {"": "cpu"}

    def test_what_it_needs(self, tiny_student_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ConfigurationError, match=says("quantization '2bit' ... 8bit ... 4bit")):
            load_model(tiny_student_dir, quantization="2bit")
        monkeypatch.setitem(sys.modules, "bitsandbytes", None)
        with pytest.raises(ConfigurationError, match="pip install bitsandbytes"):
            load_model(tiny_student_dir, quantization="4bit")


def _check_lora(model: str) -> None:
    check_lora_options(TrainOptions(model=model))


class TestNamesThatAreNoFolder:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
        """The hub in reach, with nothing in the cache and without a model of any name; what it is asked."""
        import huggingface_hub

        names: list[str] = []

        def model_info(self: Any, source: str, **_: Any) -> None:
            names.append(source)
            response = type("Response", (), {"headers": {}, "request": None, "status_code": 404, "url": ""})()
            raise huggingface_hub.errors.RepositoryNotFoundError("no", response=response)

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
        monkeypatch.chdir(tmp_path)
        return names

    @pytest.mark.parametrize("load", [load_model, load_tokenizer, load_skeleton, _check_lora])
    def test_the_hub_is_asked_once_and_nothing_is_downloaded(self, load: Any, asked: list[str], tmp_path: Path) -> None:
        (tmp_path / "student").mkdir()
        (tmp_path / "student" / "config.json").write_text("{}")
        with pytest.raises(MismatchError, match=says("'stundent' ... 'student'")):
            load("stundent")
        assert asked == ["stundent"]

    def test_a_name_that_can_be_no_hub_id(self, asked: list[str]) -> None:
        with pytest.raises(MismatchError, match=says("'my model'")):
            load_tokenizer("my model")

    def test_a_hub_out_of_reach_is_told_at_once(self, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub

        def unreachable(self: Any, source: str, **_: Any) -> None:
            raise ConnectionError("Name or service not known")

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
        with pytest.raises(MismatchError, match=says("hub ... Name or service not known")):
            load_tokenizer("gpt2")

    def test_offline_the_nearest_folder_is_named_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "student").mkdir()
        (tmp_path / "student" / "config.json").write_text("{}")
        with pytest.raises(MismatchError, match=says("'stundent' ... 'student'")):
            load_tokenizer("stundent")
        with pytest.raises(MismatchError, match=says("'./stundent' ... 'student'")):
            load_tokenizer("./stundent")


def test_a_skeleton_tells_its_sizes_under_a_launcher_that_divides_weights(
    tiny_student_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without DeepSpeed here, transformers cannot get as far as to divide them."""
    monkeypatch.setattr("transformers.modeling_utils.is_deepspeed_zero3_enabled", lambda: True)
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    assert load_skeleton(tiny_student_dir).get_input_embeddings().weight.shape == (STUDENT_ROWS, 32)


def test_a_skeleton_of_a_text_model_within_a_larger_one(tmp_path: Path) -> None:
    from transformers import Qwen3_5Config, Qwen3_5ForCausalLM, Qwen3_5TextConfig

    text = Qwen3_5TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=16,
        linear_value_head_dim=16, eos_token_id=7,
    )  # fmt: skip
    Qwen3_5Config(text_config=text).save_pretrained(tmp_path)
    skeleton = load_skeleton(tmp_path)
    assert isinstance(skeleton, Qwen3_5ForCausalLM) and skeleton.get_output_embeddings().weight.shape == (64, 32)
    assert end_ids(skeleton) == (7,)


def test_an_adapter_ends_where_it_was_trained_to(tiny_student_dir: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(load_model(tiny_student_dir), LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path)
    for load in (load_skeleton, load_model):
        assert end_ids(load(tmp_path)) == (1,)
    adapted.generation_config.eos_token_id = [1, 42]
    adapted.generation_config.save_pretrained(tmp_path)
    for load in (load_skeleton, load_model):
        assert end_ids(load(tmp_path)) == (1, 42)

"""Rollouts by vLLM of a student with adapters: the engine gets the student's weights, and the base is never touched.

TRL's own code makes the engine and sends the weights; vLLM alone is replaced, by what keeps what it is sent.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from messages import says
from training.two_processes import launch
from vopd.errors import ConfigurationError
from vopd.models.adapters import merged_weights
from vopd.training import rollout_logprobs as rollout

SYNCS = 500


class Recorder:
    """In place of vLLM's engine and of TRL's client of a vLLM server: keeps what it is sent, and scores with it."""

    def __init__(self, path: str, completions: Callable[[list[int]], list[int]]) -> None:
        self.path, self.completions = path, completions
        self.loading, self.syncs = dict[str, Tensor](), list[dict[str, Tensor]]()
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=self))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))

    @property
    def weights(self) -> dict[str, Tensor]:
        """Of the last synchronisation."""
        return self.syncs[-1]

    def load_weights(self, weights: Any) -> None:
        for name, weight in weights:
            assert name not in self.loading
            self.loading[name] = weight.clone()

    def update_named_params(self, metadata: Any, weights: Any) -> None:
        self.load_weights(weights)
        sent = [(name, str(weight.dtype), list(weight.shape)) for name, weight in self.loading.items()]
        assert [(name, f"torch.{dtype}", shape) for name, dtype, shape in metadata] == sent

    def reset_prefix_cache(self) -> None:
        self.syncs.append(self.loading)
        self.loading = {}

    def init_communicator(self, device: Any) -> None:
        pass

    def generate(self, prompts: Any, sampling_params: Any, use_tqdm: bool) -> Any:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32)
        model.load_state_dict(self.weights, strict=False)
        ids = [prompt["prompt_token_ids"] for prompt in prompts]
        return [SimpleNamespace(prompt_token_ids=prompt, outputs=[self._drawn(model, prompt)]) for prompt in ids]

    @torch.no_grad()
    def _drawn(self, model: Any, prompt: list[int]) -> Any:
        completion = self.completions(prompt)
        scores = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1, :300].log_softmax(-1)
        logprobs = [
            {token: SimpleNamespace(rank=1, logprob=float(row[token]))} for token, row in zip(completion, scores)
        ]
        return SimpleNamespace(token_ids=completion, logprobs=logprobs)


@pytest.fixture
def with_vllm(
    make_trainer: Callable[..., Any], recorded_completions: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """with_vllm(model, adapters=..., **config): trainer and recorder, its engine made by TRL."""
    from trl.generation import vllm_generation
    from trl.trainer import distillation_trainer

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):  # which TRL sets for its engine
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def make(model: Any, adapters: Any = None, *, vllm_mode: str = "colocate", **config: Any) -> Any:
        recorder = Recorder(str(model.name_or_path), recorded_completions)
        monkeypatch.setattr(rollout, "has_vllm", lambda: True)
        for module in (distillation_trainer, vllm_generation):
            monkeypatch.setattr(module, "is_vllm_available", lambda: True)
        monkeypatch.setattr(vllm_generation, "LLM", lambda **settings: recorder, raising=False)
        monkeypatch.setattr(vllm_generation, "VLLMClient", lambda **settings: recorder)
        monkeypatch.setattr(vllm_generation, "SamplingParams", SimpleNamespace, raising=False)
        trainer = make_trainer(
            model=model, trainer={"peft_config": adapters}, use_vllm=True, vllm_mode=vllm_mode, **config
        )
        return trainer, recorder

    return make


@pytest.fixture
def load(tiny_student_dir: Path, tiny_teacher_dir: Path, tiny_tokenizer: Any) -> Callable[..., Any]:
    """load("tied" | "untied" | "biased" | "experts", dtype): a tiny model as it is saved."""
    from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    small = {
        "vocab_size": 304, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16,
        "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False, "initializer_range": 0.2,
        "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
    }  # fmt: skip

    def read(kind: str, dtype: torch.dtype = torch.float32) -> Any:
        torch.manual_seed(7)
        if kind == "biased":
            model = Qwen3ForCausalLM(Qwen3Config(**small, attention_bias=True)).to(dtype)
        elif kind == "experts":
            experts = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}
            model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**small, **experts)).to(dtype)
        else:
            path = tiny_student_dir if kind == "tied" else tiny_teacher_dir
            return AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        model.config.name_or_path = str(tiny_student_dir)  # whose tokenizer the trainer takes
        return model

    return read


def lora(**settings: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | settings)


def moved(model: Any) -> Any:
    """Every trained parameter well away from where it starts, as after many steps."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def logits(model: Any) -> Tensor:
    ids = torch.arange(2, 42).reshape(2, 20)
    return model.eval()(input_ids=ids).logits


VARIANTS = {
    "plain": ("tied", {}),
    "rslora": ("tied", {"use_rslora": True}),
    "dora": ("tied", {"use_dora": True}),
    "head": ("untied", {"modules_to_save": ["lm_head"]}),
    "embedding": ("untied", {"target_modules": ["embed_tokens", "q_proj"]}),
    "dora-embedding": ("untied", {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    "bias": ("biased", {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
    "nested": ("experts", {
        "target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
    }),
}  # fmt: skip


@pytest.mark.parametrize("mode", ["colocate", "server"])
@pytest.mark.parametrize(("kind", "settings"), VARIANTS.values(), ids=VARIANTS)
def test_the_engine_has_the_students_logits_and_the_names_that_trl_sends(
    with_vllm: Callable[..., Any], load: Callable[..., Any], kind: str, settings: dict[str, Any], mode: str
) -> None:
    from trl.generation.vllm_generation import VLLMGeneration

    trainer, recorder = with_vllm(load(kind), lora(**settings), vllm_mode=mode)
    student = moved(trainer.model)
    before = {name: weight.clone() for name, weight in student.named_parameters()}
    trainer.vllm_generation.sync_weights()
    for name, weight in student.named_parameters():
        assert torch.equal(weight, before[name]), name

    engine = load(kind)
    assert not torch.allclose(logits(engine), logits(student), atol=0.1)
    missing, unknown = engine.load_state_dict(recorder.weights, strict=False)
    assert not unknown and missing in ([], ["lm_head.weight"] if kind == "tied" else [])
    torch.testing.assert_close(logits(engine), logits(student), rtol=1e-4, atol=1e-4)

    theirs = {name: weight.clone() for name, weight in VLLMGeneration._iter_named_params(trainer.vllm_generation)}
    assert list(theirs) == list(recorder.weights)
    torch.testing.assert_close(recorder.weights, theirs, rtol=1e-5, atol=1e-5)


TRLS_OWN_NAMES_ARE_WRONG = {
    "tokens": ("untied", {"trainable_token_indices": [5, 6]}, "default"),
    "tied-tokens": ("tied", {"trainable_token_indices": [5, 6]}, "default"),
    "named": ("untied", {"modules_to_save": ["lm_head"]}, "mine"),
}


@pytest.mark.parametrize(("kind", "settings", "name"), TRLS_OWN_NAMES_ARE_WRONG.values(), ids=TRLS_OWN_NAMES_ARE_WRONG)
def test_names_are_those_of_the_model_whatever_peft_puts_around_it(
    with_vllm: Callable[..., Any], load: Callable[..., Any], kind: str, settings: dict[str, Any], name: str
) -> None:
    from peft import get_peft_model

    trainer, recorder = with_vllm(get_peft_model(load(kind), lora(**settings), adapter_name=name))
    student, engine = moved(trainer.model), load(kind)
    trainer.vllm_generation.sync_weights()
    assert recorder.weights.keys() == dict(engine.named_parameters()).keys()
    engine.load_state_dict(recorder.weights, strict=False)
    torch.testing.assert_close(logits(engine), logits(student), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}], ids=["plain", "dora"])
def test_a_base_in_bf16_is_the_same_to_the_bit_after_500_synchronisations(
    with_vllm: Callable[..., Any], load: Callable[..., Any], settings: dict[str, Any]
) -> None:
    trainer, recorder = with_vllm(
        load("tied", torch.bfloat16), lora(target_modules=["q_proj", "down_proj"], **settings)
    )
    student = moved(trainer.model)
    before = {name: weight.clone() for name, weight in student.named_parameters()}
    for _ in range(SYNCS):
        trainer.vllm_generation.sync_weights()
        del recorder.syncs[1:-1]
    for name, weight in student.named_parameters():
        assert torch.equal(weight, before[name]), name
    first, last = recorder.syncs
    for name, weight in first.items():
        assert weight.dtype == torch.bfloat16 and torch.equal(last[name], weight), name


def test_a_weight_is_base_plus_delta_rounded_once(with_vllm: Callable[..., Any], load: Callable[..., Any]) -> None:
    from peft import get_peft_model

    base = dict(load("tied", torch.bfloat16).named_parameters())
    in_bf16 = get_peft_model(load("tied", torch.bfloat16), lora(), autocast_adapter_dtype=False)
    trainer, recorder = with_vllm(in_bf16)
    student = moved(trainer.model)
    trainer.vllm_generation.sync_weights()
    merged = 0
    for name, weight in base.items():
        expected, layer = weight, name.removesuffix(".weight")
        if layer.endswith("_proj"):
            tuned = student.get_submodule(f"base_model.model.{layer}")
            a, b = tuned.lora_A["default"].weight, tuned.lora_B["default"].weight
            assert a.dtype == torch.bfloat16
            delta = 2.0 * (b.float() @ a.float())
            expected, merged = (weight.float() + delta).bfloat16(), merged + 1
        assert torch.equal(recorder.weights[name], expected), name
    assert merged == 14 and recorder.weights.keys() == base.keys()


def test_one_layer_is_copied_at_a_time(load: Callable[..., Any]) -> None:
    from peft import get_peft_model

    student, alive, most = moved(get_peft_model(load("untied"), lora())), weakref.WeakSet[Tensor](), 0
    own = {weight.data_ptr() for weight in student.parameters()}
    for _, weight in merged_weights(student, Tensor.detach):
        if weight.data_ptr() not in own:
            alive.add(weight)
        most = max(most, len(alive))
    assert most == 1


def test_what_is_saved_on_the_pristine_base_is_what_was_trained(
    with_vllm: Callable[..., Any], load: Callable[..., Any], tmp_path: Path
) -> None:
    from peft import PeftModel

    trainer, recorder = with_vllm(load("tied", torch.bfloat16), lora(), max_steps=4)
    trainer.train()
    assert len(recorder.syncs) == 4
    differences = [log[rollout.MEAN_DIFFERENCE] for log in trainer.state.log_history if "loss" in log]
    assert len(differences) == 4 and max(differences) < 0.03  # the engine computes in float32
    for one, other in zip(recorder.syncs, recorder.syncs[1:]):
        assert any(not torch.equal(one[name], other[name]) for name in one)  # each step is sent
    trainer.save_model(str(tmp_path / "saved"))
    saved = PeftModel.from_pretrained(load("tied", torch.bfloat16), str(tmp_path / "saved"))
    assert not torch.equal(logits(saved), logits(load("tied", torch.bfloat16)))
    assert torch.equal(logits(saved), logits(trainer.model))


def test_a_student_without_adapters_is_sent_as_it_is(with_vllm: Callable[..., Any], load: Callable[..., Any]) -> None:
    trainer, recorder = with_vllm(load("tied"))
    trainer.vllm_generation.sync_weights()
    base = dict(load("tied").named_parameters())
    assert recorder.weights.keys() == base.keys()
    assert all(torch.equal(recorder.weights[name], weight) for name, weight in base.items())


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning")
@pytest.mark.parametrize(
    "settings",
    [{"modules_to_save": ["lm_head"]}, {"target_modules": ["embed_tokens", "q_proj"]}],
    ids=["head", "embedding"],
)
def test_what_vllm_ties_may_not_be_trained_apart(
    with_vllm: Callable[..., Any], load: Callable[..., Any], settings: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match=says("output head ... embedding ... modules_to_save ... use_vllm")):
        with_vllm(load("tied"), lora(**settings))


def test_a_quantized_student_is_refused(with_vllm: Callable[..., Any], load: Callable[..., Any]) -> None:
    student = load("tied")
    student.quantization_method = "bitsandbytes"
    with pytest.raises(ConfigurationError, match=says("quantized ... scales ... use_vllm=false ... quantization")):
        with_vllm(student, lora())


@pytest.mark.slow
def test_every_rank_of_a_sharded_student_sends_whole_weights(tiny_teacher_dir: Path) -> None:
    launch(Path(__file__).with_name("sharded_sync_run.py"), str(tiny_teacher_dir))


@pytest.mark.filterwarnings("ignore:OSF does not support unmerging")
def test_adapters_that_peft_cannot_take_off_stay_in_use(
    with_vllm: Callable[..., Any], load: Callable[..., Any]
) -> None:
    from peft import OSFConfig

    trainer, recorder = with_vllm(load("tied"), OSFConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    student, engine = moved(trainer.model), load("tied")
    before = logits(student)
    trainer.vllm_generation.sync_weights()
    assert torch.equal(logits(student), before)
    engine.load_state_dict(recorder.weights, strict=False)
    torch.testing.assert_close(logits(engine), before, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(load("tied")), before, rtol=1e-2, atol=1e-2)


def test_adapters_that_cannot_be_merged_are_refused(with_vllm: Callable[..., Any], load: Callable[..., Any]) -> None:
    from peft import LilyConfig

    with pytest.raises(ConfigurationError, match=says("adapters merged ... use_vllm=false")):
        with_vllm(load("tied"), LilyConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))


def test_prompts_in_the_attention_are_refused(
    with_vllm: Callable[..., Any], tmp_path: Path, tiny_tokenizer: Any
) -> None:
    from peft import AdaptionPromptConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=300, pad_token_id=0, eos_token_id=1, bos_token_id=None, **small))
    llama.save_pretrained(tmp_path / "llama")
    tiny_tokenizer.save_pretrained(tmp_path / "llama")
    llama = LlamaForCausalLM.from_pretrained(tmp_path / "llama")
    adapted = get_peft_model(llama, AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=2, adapter_layers=1))
    with pytest.raises(ConfigurationError, match=says("adaption prompts ... use_vllm=false")):
        with_vllm(adapted)


def test_running_out_of_memory_is_not_taken_for_an_adapter_of_another_kind(
    load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import get_peft_model
    from peft.tuners.lora import Linear

    def too_large(*given: Any, **named: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    student = get_peft_model(load("tied"), lora())
    monkeypatch.setattr(Linear, "merge", too_large)
    with pytest.raises(torch.OutOfMemoryError):
        list(merged_weights(student, Tensor.detach))

"""Families whose logits are more than hidden states times a head: trained as the model itself computes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from messages import says
from step_reference import written_out
from vopd.errors import MismatchError
from vopd.models import read_head

SIZES = {
    "vocab_size": 304, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.7,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "Gemma2": {"final_logit_softcapping": 5.0, "tie_word_embeddings": True},
    "Gemma3": {"final_logit_softcapping": 5.0, "sliding_window": 32},
    "Cohere": {"logit_scale": 0.25},
    "Cohere2": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 4.0},
    "HyperCLOVAX": {"logits_scaling": 0.25},
    "Phi": {},
    "Phimoe": {"lm_head_bias": True, "num_local_experts": 2, "num_experts_per_tok": 1},
    "FalconH1": {"lm_head_multiplier": 0.25, "mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8},
}


def make(family: str, seed: int = 0, **settings: Any) -> Any:
    """A tiny model of the family with logits large enough for a scale or a cap to matter, and with a bias if it can."""
    import transformers

    torch.manual_seed(seed)
    names = {"Gemma3": "Gemma3TextConfig"}
    config = getattr(transformers, names.get(family, f"{family}Config"))(**(SIZES | FAMILIES[family] | settings))
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    head = read_head(model, "student")
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_that_is_read_gives_the_model_s_own_logits(family: str) -> None:
    model = make(family)
    ids = torch.arange(2, 9).unsqueeze(0)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
        hidden = model.base_model(input_ids=ids).last_hidden_state[0]
        head = read_head(model, "student")
        torch.testing.assert_close(head.logits(hidden), logits, rtol=1e-4, atol=1e-4)
        plain = hidden @ head.weight.T
    assert (plain - logits).abs().max() > 0.1 * logits.abs().max(), "the options of this family do not matter here"


@pytest.mark.parametrize(
    ("student", "teacher"), [("Gemma2", "Phi"), ("Phi", "Cohere"), ("Cohere", "Gemma3"), ("Granite", "Granite")]
)
def test_a_step_is_that_of_the_formula_written_out(
    student: str,
    teacher: str,
    tiny_tokenizer: Any,
    make_trainer: Callable[..., Any],
    take_step: Callable[..., Any],
    recorded_completions: Any,
) -> None:
    """Gradients of everything, biases too, from the models' own logits by autograd."""
    models = make(student), make(teacher, seed=1, vocab_size=320)
    prompts = ["Hi", "4 + 5 =", "So the answer is"]
    trainer = make_trainer(
        model=models[0],
        trainer={"processing_class": tiny_tokenizer, "teacher_model": models[1]},
        prompts=prompts,
        per_device_train_batch_size=3,
        max_steps=1,
        max_grad_norm=0,
        learning_rate=0.0,
    )
    gradient = take_step(trainer, recorded_completions)
    pairs = [(ids, recorded_completions(ids)) for ids in trainer.tokenize(prompts)]
    models[0].zero_grad()
    models[0].eval()
    written_out(*models, pairs, "vopd", 1.0).backward()
    expected = {name: p.grad for name, p in models[0].named_parameters() if p.grad is not None}
    assert gradient.keys() == expected.keys()
    largest = max(value.abs().max() for value in expected.values())
    for name, value in expected.items():
        assert (gradient[name] - value).abs().max() <= 1e-4 * largest, name
    if student == "Phi":
        assert gradient["lm_head.bias"].abs().max() > 1e-3


@pytest.mark.parametrize(("family", "setting"), [("Granite", "logits_scaling"), ("Gemma2", "final_logit_softcapping")])
def test_a_model_that_does_not_do_what_its_configuration_says_is_refused(
    family: str, setting: str, tiny_tokenizer: Any, make_trainer: Callable[..., Any], monkeypatch: Any
) -> None:
    model = make(family)
    named = {"processing_class": tiny_tokenizer}
    make_trainer(model=model, trainer=named)
    own = model.forward
    value = getattr(model.config, setting)

    def other(*args: Any, **kwargs: Any) -> Any:
        model.config.__dict__[setting] = 3 * value
        try:
            return own(*args, **kwargs)
        finally:
            model.config.__dict__[setting] = value

    monkeypatch.setattr(model, "forward", other)
    with pytest.raises(MismatchError, match=says("student's logits")):
        make_trainer(model=model, trainer=named)


def test_a_scale_that_is_no_number_is_refused(tiny_student_dir: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_student_dir)
    for value in ("inv_sqrt_d_model", 0, -2.0, True):
        model.config.logit_scale = value
        with pytest.raises(MismatchError, match=says(f"teacher ... logit_scale={value!r}")):
            read_head(model, "teacher")

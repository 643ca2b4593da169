"""The loss reads hidden states and heads itself: only what it reads rightly may be trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from messages import says
from vopd.errors import ConfigurationError, MismatchError, NonFiniteError
from vopd.kernels import Head
from vopd.models.head_checks import check_adapters, check_logits, check_not_shared, disable_dropout


@pytest.fixture
def student(tiny_student_dir: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_student_dir, dtype=torch.float32)


def test_logits_that_are_something_else_are_refused_whatever_the_configuration_says() -> None:
    hidden, head = torch.randn(4, 8), Head(torch.randn(20, 8))
    logits = hidden @ head.weight.T
    check_logits(logits, hidden, head, "teacher")
    half = head.map(torch.Tensor.bfloat16)
    check_logits(logits.bfloat16(), hidden.bfloat16(), half, "teacher")
    with pytest.raises(MismatchError, match=r"the teacher's logits differ .* configuration \(scale 1, .*\), so"):
        check_logits(0.5 * logits, hidden, head, "teacher")
    capped = replace(head, softcap=30.0)
    with pytest.raises(MismatchError, match="soft cap 30.0"):
        check_logits(logits, hidden, capped, "teacher")


def test_a_damaged_model_is_not_an_unsupported_one() -> None:
    hidden, head = torch.randn(4, 8), Head(torch.randn(20, 8))
    hidden[2, 3] = torch.nan
    with pytest.raises(NonFiniteError, match="student's logits are NaN"):
        check_logits(head.logits(hidden), hidden, head, "student")


def test_a_teacher_is_looked_at_where_it_is_placed(
    make_trainer: Callable[..., Any], tiny_teacher_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the host a large one would take minutes in every process, and flash attention computes nothing."""
    from transformers import AutoModelForCausalLM

    from vopd.placement import Placement

    placed, looks = [], []
    place = Placement.place_frozen
    monkeypatch.setattr(Placement, "place_frozen", lambda self, model: placed.append(model) or place(self, model))
    teacher = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir)
    teacher.register_forward_pre_hook(lambda *given: looks.append(len(placed)))
    make_trainer(trainer={"teacher_model": teacher})
    assert placed == [teacher] and looks and set(looks) == {1}


@pytest.mark.parametrize("name", ["student", "teacher"])
def test_a_model_whose_logits_the_loss_would_not_compute_is_refused(
    name: str, make_trainer: Callable[..., Any], tiny_student_dir: Path, tiny_teacher_dir: Path
) -> None:
    from transformers import AutoModelForCausalLM

    folders = {"student": tiny_student_dir, "teacher": tiny_teacher_dir}
    student, teacher = (AutoModelForCausalLM.from_pretrained(folder) for folder in folders.values())
    odd = student if name == "student" else teacher
    odd.lm_head.register_forward_hook(lambda module, given, logits: 0.5 * logits)
    with pytest.raises(MismatchError, match=says(f"the {name}'s logits ... not supported")):
        make_trainer(model=student, trainer={"teacher_model": teacher}).train()


def test_sharing_with_the_teacher_is_refused(student: Any, make_trainer: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError, match="share parameters"):
        make_trainer(model=student, trainer={"teacher_model": student})
    other = nn.Module()
    other.inner = student.model
    with pytest.raises(ConfigurationError, match="share parameters"):
        check_not_shared(student, other)


def test_dropout_is_off_wherever_a_model_keeps_it(student: Any) -> None:
    student.model.layers[0].self_attn.attention_dropout = 0.1
    student.model.extra = nn.Dropout(0.3)
    disable_dropout(student)
    assert student.model.layers[0].self_attn.attention_dropout == 0.0
    assert student.model.extra.p == 0.0


def lora(**settings: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", r=2, **({"target_modules": ["q_proj", "v_proj"]} | settings))


def test_adapters_and_only_they_get_gradient(make_trainer: Callable[..., Any], take_step: Callable[..., Any]) -> None:
    trainer = make_trainer(trainer={"peft_config": lora()}, max_grad_norm=0)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    gradient = take_step(trainer)
    assert gradient and all("lora_" in name for name in gradient)
    assert any(value.abs().max() > 0 for value in gradient.values())
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, before[name]) == ("lora_" not in name), name


def test_an_adapter_on_the_head_is_refused_with_the_reason(make_trainer: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError, match=says("adapter ... lm_head ... target_modules")):
        make_trainer(trainer={"peft_config": lora(target_modules=["q_proj", "lm_head"])})


def test_a_teacher_with_an_adapter_on_its_head_is_refused(
    make_trainer: Callable[..., Any], tiny_teacher_dir: Path
) -> None:
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    teacher = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir)
    teacher = get_peft_model(teacher, lora(target_modules=["lm_head"]))
    with pytest.raises(ConfigurationError, match=says("adapter ... teacher's output head")):
        make_trainer(trainer={"teacher_model": teacher})


def test_a_head_trained_whole_beside_adapters_is_the_head_of_the_loss(
    make_trainer: Callable[..., Any], take_step: Callable[..., Any], recorded_completions: Any
) -> None:
    """With modules_to_save the model's logits come from a copy of the head: its gradient must be the whole one."""
    peft_config = lora(modules_to_save=["lm_head"], target_modules=["q_proj"])
    plain = take_step(make_trainer(max_steps=1, max_grad_norm=0), recorded_completions)
    trainer = make_trainer(trainer={"peft_config": peft_config}, max_steps=1, max_grad_norm=0)
    copy = trainer.model.get_output_embeddings().modules_to_save["default"].weight
    gradient = take_step(trainer, recorded_completions)
    (head,) = (value for name, value in gradient.items() if "lm_head" in name)
    assert copy.requires_grad and head.abs().max() > 0
    # The untouched student ties its head to its embedding, whose gradient has a share of both: rows of tokens that
    # no prompt and no completion holds get theirs through the head alone.
    tied = plain["model.embed_tokens.weight"]
    seen = {token for ids in trainer.tokenize(trainer.train_dataset["prompt"][:]) for token in ids}
    seen |= {
        token for ids in trainer.tokenize(trainer.train_dataset["prompt"][:]) for token in recorded_completions(ids)
    }
    unseen = [token for token in range(300) if token not in seen]
    torch.testing.assert_close(head[unseen], tied[unseen], rtol=1e-4, atol=1e-6)


pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model config is :UserWarning"),
]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("LoraConfig", {"alora_invocation_tokens": [5, 6], "target_modules": "all-linear"}),
        ("PolyConfig", {"target_modules": ["q_proj"]}),
        ("ShadowConfig", {}),
    ],
)
@pytest.mark.parametrize("name", ["student", "teacher"])
def test_adapters_that_the_loss_would_pass_over_are_refused(
    make_trainer: Callable[..., Any], student: Any, name: str, kind: str, settings: dict[str, Any]
) -> None:
    import peft

    adapters = getattr(peft, kind)(task_type="CAUSAL_LM", **settings)
    adapted = (
        {"peft_config": adapters} if name == "student" else {"teacher_model": peft.get_peft_model(student, adapters)}
    )
    with pytest.raises(ConfigurationError, match=says(f"the {name} has adapters of kind ... use LoRA")):
        make_trainer(trainer=adapted)


def test_an_adapter_that_is_not_in_use_is_nobodys_concern(student: Any) -> None:
    import peft

    plain, invoked = (
        peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], alora_invocation_tokens=tokens)
        for tokens in (None, [5, 6])
    )
    adapted = peft.get_peft_model(student, plain)
    adapted.add_adapter("invoked", invoked)
    check_adapters(adapted, "student")
    adapted.set_adapter("invoked")
    with pytest.raises(ConfigurationError, match="activated LoRA"):
        check_adapters(adapted, "student")

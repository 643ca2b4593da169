from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vopd.models import load_model, load_skeleton
from vopd.models.footprint import Footprint, Step, bytes_per_weight, footprint

STEP = Step(sequences=2, generated=4, tokens=100, completion_tokens=60, checkpointing=False, half=False)


def of(student: Path, teacher: Path, step: Step = STEP, dtype: str = "float32") -> Footprint:
    return footprint(
        load_skeleton(student), [load_skeleton(teacher)], student_dtype=dtype, teacher_dtype="auto", step=step
    )


def test_weights_gradients_and_optimizer_are_counted_exactly(tiny_student_dir: Path, tiny_teacher_dir: Path) -> None:
    found = of(tiny_student_dir, tiny_teacher_dir)
    model = load_model(tiny_student_dir)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.tensor([[5, 6]])).logits.sum().backward()
    optimizer.step()
    states = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert found.student == sum(weight.nbytes for weight in model.parameters())
    assert found.gradients == sum(weight.grad.nbytes for weight in model.parameters() if weight.grad is not None)
    assert found.optimizer == sum(state.nbytes for state in states)
    assert found.teacher == sum(weight.nbytes for weight in load_model(tiny_teacher_dir).parameters())


def test_sharding_divides_what_is_sharded(tiny_student_dir: Path, tiny_teacher_dir: Path) -> None:
    whole = of(tiny_student_dir, tiny_teacher_dir)
    half = whole.sharded(2)
    kept = whole.student + whole.teacher + whole.gradients + whole.optimizer
    assert half.peak == whole.peak - kept // 2 and half.activations == whole.activations
    assert whole.sharded(1) == whole


def test_the_cache_is_that_of_generation(tiny_student_dir: Path, tiny_teacher_dir: Path) -> None:
    model = load_model(tiny_student_dir)
    cache = model(torch.full((STEP.generated, STEP.tokens), 5), use_cache=True).past_key_values
    size = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert of(tiny_student_dir, tiny_teacher_dir).rollout == size
    assert of(tiny_student_dir, tiny_teacher_dir, replace(STEP, generated=0)).rollout == 0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_near_what_autograd_keeps(
    tiny_student_dir: Path, tiny_teacher_dir: Path, checkpointing: bool
) -> None:
    model = load_model(tiny_student_dir).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    weights = {weight.data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model.model(torch.full((STEP.sequences, STEP.tokens), 5), use_cache=False).last_hidden_state
    measured = sum(kept.values())
    del hidden
    estimated = of(tiny_student_dir, tiny_teacher_dir, replace(STEP, checkpointing=checkpointing)).activations
    # One layer is computed again at a time, and the teacher's pass is in the estimate: an upper bound of this measure.
    assert measured / 2 < estimated < 3 * measured or (checkpointing and estimated > measured)


def test_adapters_are_all_that_is_trained(tiny_student_dir: Path, tiny_teacher_dir: Path) -> None:
    import peft

    student = load_skeleton(tiny_student_dir)
    with torch.device("meta"):
        peft.get_peft_model(student, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    found = footprint(
        student, [load_skeleton(tiny_teacher_dir)], student_dtype="bfloat16", teacher_dtype="auto", step=STEP
    )
    real = peft.get_peft_model(
        load_model(tiny_student_dir), peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    trained = sum(weight.numel() for weight in real.parameters() if weight.requires_grad)
    frozen = sum(weight.numel() for weight in real.parameters() if not weight.requires_grad)
    assert (found.gradients, found.optimizer) == (4 * trained, 8 * trained)
    assert found.student == 2 * frozen + 4 * trained


def test_a_skeleton_has_sizes_end_tokens_and_no_weights(tiny_student_dir: Path) -> None:
    skeleton = load_skeleton(tiny_student_dir)
    assert all(weight.device.type == "meta" for weight in skeleton.parameters())
    assert skeleton.generation_config.eos_token_id == 1
    assert bytes_per_weight(skeleton, "auto") == 4 and bytes_per_weight(skeleton, "bfloat16") == 2


def test_few_bits_offloading_and_copies_are_in_the_estimate(tiny_student_dir: Path, tiny_teacher_dir: Path) -> None:
    student, teacher = load_skeleton(tiny_student_dir), load_skeleton(tiny_teacher_dir)
    common = {"student_dtype": "float32", "teacher_dtype": "bfloat16", "step": STEP}
    plain = footprint(student, [teacher], **common)
    linear = sum(m.weight.numel() for m in teacher.model.modules() if isinstance(m, torch.nn.Linear))
    others = sum(weight.numel() for weight in teacher.parameters()) - linear
    for name, bits in (("8bit", 8), ("4bit", 4.127)):
        found = footprint(student, [teacher], **common, teacher_quantization=name)
        assert found.teacher == pytest.approx(linear * bits / 8 + 2 * others, abs=2)
    two = footprint(student, [teacher, teacher], **common)
    assert two.teacher == 2 * plain.teacher
    away = footprint(student, [teacher, teacher], **common, teacher_offload=True)
    assert away.teacher == two.teacher and plain.peak - plain.teacher <= away.peak < two.peak
    copied = footprint(student, [], **common, copied=True)
    assert copied.teacher == sum(weight.nbytes for weight in load_model(tiny_student_dir).parameters())


def test_a_quantized_student_with_adapters(tiny_student_dir: Path) -> None:
    import peft

    student = load_skeleton(tiny_student_dir)
    with torch.device("meta"):
        peft.get_peft_model(student, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    common = {"student_dtype": "bfloat16", "teacher_dtype": "auto", "step": STEP}
    plain, four = (footprint(student, [], **common, quantization=name) for name in (None, "4bit"))
    assert four.student < 0.7 * plain.student and four.optimizer == plain.optimizer

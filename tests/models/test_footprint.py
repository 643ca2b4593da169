from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vopd.kernels import chunk_rows
from vopd.kernels.heads import Projection
from vopd.kernels.logits import LinearHeads
from vopd.models import load_model, load_skeleton, read_head
from vopd.models.footprint import Footprint, Step, bytes_per_weight, footprint
from vopd.models.head_files import load_head
from vopd.models.states import last_hidden_states

STEP = Step(sequences=2, generated=4, tokens=100, completion_tokens=60, checkpointing=False, half=False, device="cpu")


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
    found = model(torch.full((STEP.generated, STEP.tokens), 5), use_cache=True)
    cache = sum(layer.keys.nbytes + layer.values.nbytes for layer in found.past_key_values.layers)
    logits = found.logits[:, -1].float()  # and three more of their size
    assert of(tiny_student_dir, tiny_teacher_dir).rollout == cache + 4 * logits.nbytes
    assert of(tiny_student_dir, tiny_teacher_dir, replace(STEP, generated=0)).rollout == 0


def kept_by_autograd(model: Any, half: bool) -> int:
    """Bytes of what a forward pass of the layers keeps for the backward pass, weights aside; a prompt is padded."""
    model.train()
    weights = {weight.data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.full((STEP.sequences, STEP.tokens), 5)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast(half):
        hidden = last_hidden_states(model, ids, mask, STEP.completion_tokens)
    assert hidden.requires_grad  # and alive until here
    return sum(kept.values())


def autocast(half: bool) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=half)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("rank", [0, 2])
def test_activations_are_what_autograd_keeps(
    tiny_student_dir: Path, tiny_teacher_dir: Path, half: bool, rank: int
) -> None:
    model, skeleton = load_model(tiny_student_dir), load_skeleton(tiny_student_dir)
    if rank:
        model = with_adapters(model, rank)
        with torch.device("meta"):
            with_adapters(skeleton, rank)
    found = footprint(
        skeleton, [], student_dtype="float32", teacher_dtype="auto", step=replace(STEP, half=half)
    ).activations
    assert found == pytest.approx(kept_by_autograd(model, half), rel=0.1)


def test_only_one_layer_is_kept_with_checkpointing(tiny_student_dir: Path, tiny_teacher_dir: Path) -> None:
    model = load_model(tiny_student_dir)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    whole, few = (of(tiny_student_dir, tiny_teacher_dir, replace(STEP, checkpointing=on)) for on in (False, True))
    states = kept_by_autograd(model, half=False)
    layer = whole.activations // model.config.num_hidden_layers
    assert few.activations - layer <= states <= few.activations < whole.activations


def test_autocast_keeps_its_copies_until_the_teacher_has_scored(tiny_student_dir: Path, tiny_teacher_dir: Path) -> None:
    half = replace(STEP, half=True)
    kept, again = (of(tiny_student_dir, tiny_teacher_dir, replace(half, checkpointing=on)) for on in (False, True))
    linear = [m for m in load_model(tiny_student_dir).model.modules() if isinstance(m, torch.nn.Linear)]
    assert again.scoring - kept.scoring == sum(module.weight.bfloat16().nbytes for module in linear)


def test_the_loss_holds_a_chunk_of_logits_and_its_gradients(tiny_student_dir: Path, tiny_teacher_dir: Path) -> None:
    student, teacher = (read_head(load_model(folder), "") for folder in (tiny_student_dir, tiny_teacher_dir))
    rows = torch.arange(STEP.sequences * STEP.completion_tokens)
    hidden = [torch.randn(len(rows), head.weight.shape[1]) for head in (student, teacher)]
    options = {"vocab_size": len(student.weight), "temperature": 1.0, "wants": (True, True, False)}
    source = LinearHeads(hidden[0], student.detach(), hidden[1], teacher.detach(), **options)
    gradients = sum(gradient.nbytes for gradient in source.gradients() if gradient is not None)
    logits = source.logits(rows, with_teacher=True)
    assert logits.teacher is not None and len(rows) < chunk_rows(len(student.weight), rows.device, True)
    found = of(tiny_student_dir, tiny_teacher_dir).loss
    assert found == logits.student.nbytes + logits.teacher.nbytes + gradients
    alone = footprint(load_skeleton(tiny_student_dir), [], student_dtype="float32", teacher_dtype="auto", step=STEP)
    assert alone.loss == found - logits.teacher.nbytes


def test_heads_of_half_precision_are_copied_on_a_cpu(tiny_student_dir: Path, tiny_teacher_dir: Path) -> None:
    ids = torch.arange(3)

    def copied(folder: Path, dtype: str, half: bool) -> int:
        head = read_head(load_model(folder, dtype=dtype), "")
        with autocast(half), torch.no_grad():
            projection = Projection(torch.randn(3, head.weight.shape[1]), head, len(head.weight), 1.0, torch.float32)
            projection.logits(ids)
        product = projection.weight()
        return 0 if product.data_ptr() == head.weight.data_ptr() else product.nbytes

    for dtype, half in (("float32", False), ("float32", True), ("bfloat16", False)):
        step = replace(STEP, half=half)
        student, teacher = load_skeleton(tiny_student_dir), load_skeleton(tiny_teacher_dir)
        found = footprint(student, [teacher], student_dtype=dtype, teacher_dtype=dtype, step=step)
        assert found.heads == copied(tiny_student_dir, dtype, half) + copied(tiny_teacher_dir, dtype, half)
        on_a_gpu = replace(step, device="cuda")
        gpu = footprint(student, [teacher], student_dtype=dtype, teacher_dtype=dtype, step=on_a_gpu)
        assert gpu.heads == 0


def test_the_peak_is_that_of_the_largest_phase(tiny_student_dir: Path, tiny_teacher_dir: Path) -> None:
    found = replace(of(tiny_student_dir, tiny_teacher_dir, replace(STEP, process=1 << 30)), activations=1000)
    fixed = (1 << 30) + found.student + found.teacher + found.gradients + found.optimizer
    assert replace(found, rollout=10**9).peak == fixed + 10**9
    assert replace(found, rollout=0, scoring=10**8).peak == fixed + 1000 + 10**8
    assert replace(found, rollout=0, scoring=0, loss=10**7, heads=10**8).peak == fixed + 1000 + 11 * 10**7


def test_a_teachers_states_of_a_generated_batch_stay_until_they_are_used(
    tiny_student_dir: Path, tiny_teacher_dir: Path
) -> None:
    without, kept = (of(tiny_student_dir, tiny_teacher_dir, replace(STEP, kept=rows)) for rows in (0, STEP.generated))
    teacher, length = load_model(tiny_teacher_dir), STEP.completion_tokens
    ids = torch.full((STEP.generated, STEP.tokens), 5)
    states = last_hidden_states(teacher, ids, torch.ones_like(ids), length)
    assert without.states == 0 and kept.states == states.nbytes
    assert replace(kept, rollout=0).peak == replace(without, rollout=0).peak + states.nbytes


def test_of_a_teacher_whose_states_a_server_sends_the_head_and_the_states_are_counted(
    tiny_student_dir: Path, tiny_teacher_dir: Path
) -> None:
    student, teacher = load_skeleton(tiny_student_dir), load_skeleton(tiny_teacher_dir)
    weight, length = load_head(tiny_teacher_dir).weight, STEP.completion_tokens
    sent = torch.zeros(7, length, weight.size(1), dtype=torch.bfloat16)
    batch = torch.zeros(2, length, weight.size(1), dtype=weight.dtype)

    def of_served(*served: Any, offload: bool = False, **changes: Any) -> Footprint:
        step = replace(STEP, sent=7, **{"device": "cuda", **changes})
        sizes: dict[str, Any] = {"student_dtype": "float32", "teacher_dtype": "bfloat16", "teacher_offload": offload}
        return footprint(student, [], **sizes, step=step, served=served)

    none, one, away = of_served(), of_served(teacher), of_served(teacher, offload=True)
    logits = 4 * round(STEP.sequences * length) * len(student.get_output_embeddings().weight)
    assert (none.teacher, none.host) == (0, 0) and (one.teacher, one.host) == (weight.nbytes, sent.nbytes)
    assert one.loss == none.loss + logits + batch.nbytes and one.states == 0
    assert away.loss == one.loss + weight.nbytes and away.teacher == away.offloaded == weight.nbytes
    assert of_served(teacher, sent_bytes=4).host == 2 * sent.nbytes
    on_a_cpu = of_served(teacher, offload=True, device="cpu")
    assert on_a_cpu.states == sent.nbytes and on_a_cpu.offloaded == 0


def with_adapters(model: Any, rank: int) -> Any:
    import peft

    return peft.get_peft_model(model, peft.LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))


def test_adapters_are_all_that_is_trained(tiny_student_dir: Path, tiny_teacher_dir: Path) -> None:
    student = load_skeleton(tiny_student_dir)
    with torch.device("meta"):
        with_adapters(student, 2)
    found = footprint(
        student, [load_skeleton(tiny_teacher_dir)], student_dtype="bfloat16", teacher_dtype="auto", step=STEP
    )
    real = with_adapters(load_model(tiny_student_dir), 2)
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
    assert away.scoring == two.scoring + plain.teacher  # one at a time
    assert away.teacher == two.teacher and plain.peak - plain.teacher <= away.peak < two.peak
    copied = footprint(student, [], **common, copied=True)
    assert copied.teacher == sum(weight.nbytes for weight in load_model(tiny_student_dir).parameters())


def test_a_quantized_student_with_adapters(tiny_student_dir: Path) -> None:
    student = load_skeleton(tiny_student_dir)
    with torch.device("meta"):
        with_adapters(student, 2)
    common = {"student_dtype": "bfloat16", "teacher_dtype": "auto", "step": STEP}
    plain, four = (footprint(student, [], **common, quantization=name) for name in (None, "4bit"))
    assert four.student < 0.7 * plain.student and four.optimizer == plain.optimizer


FAMILIES: dict[str, dict[str, Any]] = {
    "Gemma4Text": {  # layers with heads of 8 and of 16
        "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 512, "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64, "num_global_key_value_heads": 1,
        "head_dim": 8, "global_head_dim": 16,
    },
    "Gemma3nText": {
        "layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0, "head_dim": 8,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64, "laurel_rank": 4,
        "intermediate_size": [16, 32], "activation_sparsity_pattern": [0.0, 0.0],
    },
    "Mamba": {"state_size": 4},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_families_whose_layers_differ_or_have_no_attention(family: str) -> None:
    import transformers

    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    if family != "Mamba":
        sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = getattr(transformers, f"{family}Config")(**sizes | FAMILIES[family])
    model = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config)
    found = footprint(model, [model], student_dtype="float32", teacher_dtype="float32", step=STEP)
    assert all(size >= 0 for size in vars(found).values()) and min(found.activations, found.scoring) > 0
    if family == "Gemma4Text":
        output = model(torch.full((STEP.generated, STEP.tokens), 5), use_cache=True)
        cache = sum(layer.keys.nbytes + layer.values.nbytes for layer in output.past_key_values.layers)
        assert found.rollout == cache + 4 * output.logits[:, -1].nbytes

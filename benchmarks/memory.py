"""Estimated memory of a training step by model size: the numbers of ``vopd train --dry-run``, without any download.

    python benchmarks/memory.py

Builds Qwen3 models of known sizes without weights and applies the estimate that the dry run prints. Prints the table of
docs/reference/models.md. An estimate, not a measurement: nothing is allocated and nothing is run.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from vopd.models.footprint import Footprint, Step, footprint

VOCABULARY = 151936
# hidden_size, intermediate_size, layers, attention heads; head tied to the embedding
SIZES = {
    "0.6B": (1024, 3072, 28, 16, True),
    "1.7B": (2048, 6144, 28, 16, True),
    "4B": (2560, 9728, 36, 32, True),
    "8B": (4096, 12288, 36, 32, False),
    "32B": (5120, 25600, 64, 64, False),
}
PAIRS = (("0.6B", "4B"), ("1.7B", "8B"), ("4B", "8B"), ("8B", "32B"))
PROMPT, COMPLETION, MICRO_BATCH, ACCUMULATION = 1024, 2048, 4, 4
GIB = 1 << 30


def skeleton(size: str, lora_rank: int = 0) -> Any:
    """A Qwen3 of this size without weights, saved in bf16 as its configuration says."""
    import peft
    from transformers import Qwen3Config, Qwen3ForCausalLM

    width, inner, layers, heads, tied = SIZES[size]
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=8, head_dim=128, tie_word_embeddings=tied, dtype=torch.bfloat16,
    )  # fmt: skip
    adapters = peft.LoraConfig(r=lora_rank, target_modules="all-linear", task_type="CAUSAL_LM") if lora_rank else None
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers by a name that it has changed
        model = Qwen3ForCausalLM(config)
        if adapters is not None:
            peft.get_peft_model(model, adapters)
    return model


def estimates(student: str, teacher: str) -> dict[str, Footprint]:
    """A step on one GPU: every weight in float32, LoRA on bf16 weights, QLoRA; the teacher here or on a server of
    hidden states, its output head here."""
    generated = MICRO_BATCH * ACCUMULATION
    step = Step(MICRO_BATCH, generated, PROMPT + COMPLETION, COMPLETION, True, True, "cuda", sent=generated)
    common: dict[str, Any] = {"teacher_dtype": "auto", "step": step}
    teachers, adapted = [skeleton(teacher)], skeleton(student, lora_rank=64)
    return {
        "full": footprint(skeleton(student), teachers, student_dtype="float32", **common),
        "full, server teacher": footprint(skeleton(student), [], served=teachers, student_dtype="float32", **common),
        "LoRA": footprint(adapted, teachers, student_dtype="bfloat16", **common),
        "LoRA, server teacher": footprint(adapted, [], served=teachers, student_dtype="bfloat16", **common),
        "QLoRA, 4-bit teacher": footprint(
            adapted, teachers, student_dtype="bfloat16", quantization="4bit", teacher_quantization="4bit", **common
        ),
    }


def main() -> None:
    """Print the tables."""
    print("| model | parameters | weights in bf16 | KV cache, one token |\n|---|---|---|---|")
    for size in SIZES:
        model = skeleton(size)
        count = sum(weight.numel() for weight in model.parameters())
        cache = 4 * model.config.num_hidden_layers * model.config.num_key_value_heads * model.config.head_dim
        print(f"| {size} | {count / 1e9:.2f} billion | {2 * count / GIB:.1f} GiB | {cache / 1024:.0f} KiB |")
    found = {pair: estimates(*pair) for pair in PAIRS}
    names = next(iter(found.values()))
    print(f"\n| student | teacher | {' | '.join(names)} |\n|---|---|{'---|' * len(names)}")
    for (student, teacher), cells in found.items():
        print(f"| {student} | {teacher} | {' | '.join(f'{each.peak / GIB:.0f} GiB' for each in cells.values())} |")


if __name__ == "__main__":
    main()

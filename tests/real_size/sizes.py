"""Pairs of random models of real sizes, and the options of a run of each; `make` saves a pair into a folder.

    python tests/real_size/sizes.py NAME FOLDER [FOLDER_OF_TOKENIZER]

A program of its own, so that the memory of the weights is given back before anything is measured.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = 32_000


@dataclass(frozen=True)
class Size:
    """Shapes of student and teacher, (hidden_size, intermediate_size) each, and what both share.

    Attributes:
        rows: rows of the output heads; tied to the embeddings.
        options: of `vopd train`, besides the models and prompts.
        prompt: words of a prompt.
        tokenizer: name of a real tokenizer; None for one word a token.
    """

    student: tuple[int, int]
    teacher: tuple[int, int]
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    rows: int
    dtype: str
    options: dict[str, Any]
    prompt: int
    tokenizer: str | None = None


SIZES = {
    # Qwen3-0.6B under Qwen3-1.7B: the weights dominate, and the float32 copies of both heads.
    "qwen3": Size(
        (1024, 3072), (2048, 6144), 28, 16, 8, 128, 151_936, "bfloat16",
        {
            "dtype": "bfloat16", "lora_rank": 16, "bf16": True, "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1, "max_completion_length": 32, "max_steps": 1,
        },
        prompt=4,
        tokenizer="qwen3",
    ),
    # 138 million weights, all of them trained, in two steps: the second one has optimizer states from its start.
    "full": Size(
        (768, 3072), (1024, 3072), 12, 12, 12, 64, WORDS, "float32",
        {
            "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_completion_length": 64,
            "max_steps": 2,
        },
        prompt=192,
    ),
    # 14 million weights and many tokens: activations.
    "tokens": Size(
        (256, 1024), (384, 1024), 6, 8, 8, 32, WORDS, "float32",
        {
            "per_device_train_batch_size": 32, "gradient_accumulation_steps": 1, "max_completion_length": 64,
            "max_steps": 2,
        },
        prompt=192,
    ),
}  # fmt: skip


def make(size: Size, folder: Path, tokenizers: Path | None = None) -> None:
    """Save student, teacher and prompts into the folder."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = _tokenizer(None if tokenizers is None or size.tokenizer is None else tokenizers / size.tokenizer)
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, size.dtype))
    for name, (width, inner) in (("student", size.student), ("teacher", size.teacher)):
        config = Qwen3Config(
            vocab_size=size.rows, hidden_size=width, intermediate_size=inner, num_hidden_layers=size.layers,
            num_attention_heads=size.heads, num_key_value_heads=size.key_value_heads, head_dim=size.head_dim,
            tie_word_embeddings=True, dtype=size.dtype, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
        )  # fmt: skip
        Qwen3ForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    prompts = [
        json.dumps({"prompt": " ".join(["w1"] * (size.prompt - 1) + [f"w{number}"])}) for number in range(100, 228)
    ]
    (folder / "prompts.jsonl").write_text("\n".join(prompts), encoding="utf-8")


def _tokenizer(folder: Path | None) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if folder is not None:
        return AutoTokenizer.from_pretrained(folder)
    names = ["<pad>", "<eos>", *(f"w{number}" for number in range(WORDS - 2))]
    words = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


if __name__ == "__main__":
    make(SIZES[sys.argv[1]], Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)

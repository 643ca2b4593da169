"""A teacher and a student language model from scratch, on the Python sources and texts that are on this machine.

    python benchmarks/gpu/language_pair.py corpus  --folder F --seconds 30 --json corpus.json
    python benchmarks/gpu/language_pair.py teacher --folder F --seconds 80 --json teacher.json
    python benchmarks/gpu/language_pair.py student --folder F --seconds 50 --json student.json

`corpus` trains a byte-level BPE tokenizer and writes tokens.npy, prompts.jsonl and held_out.jsonl (beginnings of files
that are in neither). Both models are Qwen3, trained in bf16 autocast for the given seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sysconfig
import time
from pathlib import Path

import numpy as np
import torch
from timing import DEVICE

VOCABULARY, LENGTH, BATCH = 16384, 512, 64
SIZES = {  # width, layers, heads, width of the MLP
    "teacher": (1024, 10, 16, 2816),
    "student": (512, 10, 8, 1536),
}
_PROMPT_TOKENS, _PROMPTS, _HELD_OUT = 48, 512, 256


def texts(limit: int) -> list[str]:
    """Sources and texts of the standard library and the installed packages, in a fixed shuffled order."""
    folders = {sysconfig.get_path(name) for name in ("stdlib", "purelib")}
    paths = sorted({p for f in folders for ending in ("py", "md", "rst") for p in Path(f).rglob(f"*.{ending}")})
    random.Random(0).shuffle(paths)
    found, size = [], 0
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="ignore")
        if 1000 < len(text) < 200_000:
            found.append(text)
            size += len(text)
        if size > limit:
            break
    return found


def corpus(folder: Path, dry: bool) -> dict[str, int]:
    """Write tokenizer, tokens, prompts and held-out prompts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    found = texts(300_000 if dry else 100_000_000)
    apart = min(_PROMPTS + _HELD_OUT, len(found) // 2)
    apart, learned = found[:apart], found[apart:]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600 if dry else VOCABULARY, special_tokens=["<pad>", "<eos>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(learned[: len(learned) // 6], trainer)
    ids = [encoded.ids for encoded in tokenizer.encode_batch(learned)]
    np.save(folder / "tokens.npy", np.concatenate([np.array([*row, 1], dtype=np.int32) for row in ids]))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.save_pretrained(folder / "tokenizer")
    prompts = [{"prompt": tokenizer.decode(e.ids[:_PROMPT_TOKENS])} for e in tokenizer.encode_batch(apart)]
    split = len(prompts) * _PROMPTS // (_PROMPTS + _HELD_OUT)
    for name, rows in ("prompts", prompts[:split]), ("held_out", prompts[split:]):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"files": len(found), "tokens": sum(map(len, ids)), "prompts": split, "held_out": len(prompts) - split}


def pretrain(name: str, folder: Path, seconds: float, dry: bool) -> dict[str, float]:
    """Train one of the models for `seconds` and save it."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    tokens = torch.from_numpy(np.load(folder / "tokens.npy")).long()
    width, layers, heads, inner = (32, 1, 2, 64) if dry else SIZES[name]
    length, batch = (32, 4) if dry else (LENGTH, BATCH)
    torch.manual_seed(len(name) + width)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads // 2, head_dim=width // heads,
        max_position_embeddings=2048, tie_word_embeddings=False, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1)
    started, step, losses = time.monotonic(), 0, []
    while (progress := (time.monotonic() - started) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 6e-4 * min(1, step / 50 + 0.02) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
        starts = torch.randint(len(tokens) - length, (batch,))
        ids = torch.stack([tokens[start : start + length] for start in starts]).to(DEVICE)
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        losses.append(loss.detach())
        if step % 20 == 0:
            loss.item()  # the clock must not run ahead of the device
    model.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "steps": step,
        "tokens": step * batch * length,
        "loss_of_the_last_20_steps": float(torch.stack(losses[-20:]).mean()),
    }


def main() -> None:
    """Do one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("corpus", *SIZES))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    if given.part == "corpus":
        found = corpus(given.folder, given.dry_run)
    else:
        found = pretrain(given.part, given.folder, given.seconds, given.dry_run)
    print(found)
    given.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()

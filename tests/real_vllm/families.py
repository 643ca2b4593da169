"""Other families of models with random weights: states by vLLM times the head alone give the model's own logits."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

TOLERANCE = 1e-4
IDS = list(range(5, 45))
ROWS = 512


def compare_families(check: Callable[[str, bool], None], python: str, folder: Path) -> None:
    """Save the models, let vLLM compute their states, and compare log-probabilities with transformers."""
    from vopd.models.head_files import load_head

    for name, model in models().items():
        save(model, folder / name)
    program = Path(__file__).with_name("states_of.py")
    done = subprocess.run([python, "-W", "ignore", str(program), str(folder)], capture_output=True, text=True)
    for name, model in models().items():
        file = folder / f"{name}.pt"
        if not file.is_file():
            check(f"{name}: vLLM gives no states: {done.stderr[-300:]!r}", False)
            continue
        head = load_head(str(folder / name))
        with torch.no_grad():
            own = model(input_ids=torch.tensor([IDS])).logits[0].log_softmax(-1)
            apart = float((head.logits(torch.load(file)).log_softmax(-1) - own).abs().max())
        special = f"scale {head.scale:g}, soft cap {head.softcap}, bias {'no' if head.bias is None else 'yes'}"
        check(f"{name} ({special}): log-probabilities differ by {apart:.1e} nats at most", apart <= TOLERANCE)


def save(model: Any, folder: Path) -> None:
    """Write a model with the embedded pair's tokenizer, without which vLLM does not start."""
    from vopd.experiments.pair import embedded_pair
    from vopd.models import load_tokenizer

    model.save_pretrained(folder)
    load_tokenizer(embedded_pair().student).save_pretrained(folder)


def models() -> dict[str, Any]:
    """Small models of 2 layers, with heads of width 32 that vLLM's attention on the CPU needs; the same each time."""
    import transformers as hf

    ends = {"vocab_size": ROWS, "bos_token_id": 2, "eos_token_id": 1}
    plain = ends | {
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0,
    }  # fmt: skip
    opt = {"hidden_size": 128, "word_embed_proj_dim": 128, "ffn_dim": 256, "num_hidden_layers": 2}
    configs = {
        "Gemma 2": hf.Gemma2Config(**plain, head_dim=32, final_logit_softcapping=5.0, sliding_window=64),
        "Granite": hf.GraniteConfig(**plain, logits_scaling=4.0, embedding_multiplier=6.0, residual_multiplier=0.5),
        "Cohere": hf.CohereConfig(**plain, logit_scale=0.25),
        "Phi": hf.PhiConfig(**plain),
        "GPT-2": hf.GPT2Config(**ends, n_embd=128, n_layer=2, n_head=4, n_positions=128),
        "OPT": hf.OPTConfig(**ends, **opt, num_attention_heads=4, max_position_embeddings=128, pad_token_id=0),
    }
    return {name: randomised(config) for name, config in configs.items()}


def randomised(config: Any) -> Any:
    """A model whose biases and norms are random too."""
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.08 * torch.randn_like(weight))
    return model

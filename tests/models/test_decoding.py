"""The batch shrinks as sequences end, and nothing else changes: against plain ``generate`` and full forward passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import scipy.stats
import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig

from vopd.models.decoding import generate

PAD, VOCABULARY, LONGEST = 0, 64, 24
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64,
    "initializer_range": 0.7, "pad_token_id": PAD, "eos_token_id": None, "bos_token_id": None,
}  # fmt: skip
EXPERTS = {"num_experts": 2, "num_local_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 2, "linear_num_key_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
LEAVING: dict[str, dict[str, Any]] = {
    "GPT2": {"n_positions": 64},
    "Bloom": {"n_head": 2},
    "Qwen3": {},
    "Qwen3Moe": EXPERTS,
    "Phi3": {},
    "Mistral": {"sliding_window": 6},
    "Gemma3": {
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
        "tie_word_embeddings": False,
    },
    "GptOss": {**EXPERTS, "sliding_window": 6},
    "FalconH1": {"mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8},
    "Lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "Qwen3Next": {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 8},
}
# Their states are not in a cache that ``generate`` made.
STAYING: dict[str, dict[str, Any]] = {
    "Mamba": {"state_size": 4},
    "OpenAIGPT": {"n_positions": 64},
    "RecurrentGemma": {"block_types": ["recurrent", "attention"], "attention_window_size": 6, "lru_width": 16},
}
PROMPTS = [[3, 4, 5, 6, 7, 8, 9], [10], [11, 12, 13], [14, 15], [16, 17, 18, 19, 20], [21, 22]]


@cache
def make(family: str) -> Any:
    torch.manual_seed(1)
    config = getattr(transformers, {"Gemma3": "Gemma3TextConfig"}.get(family, f"{family}Config"))
    suffix = "LMHeadModel" if "GPT" in family else "ForCausalLM"
    model = getattr(transformers, family + suffix)(config(**SIZES | (LEAVING | STAYING)[family])).eval()
    model.generation_config = GenerationConfig()
    return model


def padded(prompts: list[list[int]] = PROMPTS) -> dict[str, Tensor]:
    width = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[PAD] * (width - len(ids)) + ids for ids in prompts]),
        "attention_mask": torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]),
    }


def settings(**changes: Any) -> GenerationConfig:
    usual = {"max_new_tokens": LONGEST, "pad_token_id": PAD, "do_sample": False, "use_cache": True}
    return GenerationConfig(**usual | changes)


def ends_of(model: Any, **changes: Any) -> list[int]:
    """Two end ids at which sequences end at different times."""
    free = model.generate(**padded(), generation_config=settings(**changes))[:, padded()["input_ids"].size(1) :]
    tokens = free.unique().tolist()
    alone = torch.tensor([ends_at(free, [token]) for token in tokens])
    lengths = torch.minimum(alone, alone.unsqueeze(1)).sort().values  # of each pair
    different = (lengths.diff() > 0).sum(-1)
    return [tokens[place] for place in divmod(int(different.argmax()), len(tokens))]


def ends_at(completions: Tensor, ends: Any) -> list[int]:
    """Length of each completion, its end token included."""
    found = torch.isin(completions, torch.tensor(list(ends)))
    return [int(row.int().argmax()) + 1 if row.any() else len(row) for row in found]


@contextmanager
def rows_computed(model: Any) -> Iterator[list[int]]:
    """The number of sequences in every forward pass."""
    rows: list[int] = []
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    yield rows
    hook.remove()


def remaining(lengths: list[int]) -> list[int]:
    return [sum(length > step for length in lengths) for step in range(max(lengths))]


@pytest.mark.parametrize("family", [*LEAVING, *STAYING])
def test_greedy_completions_are_those_of_generate_and_ended_rows_leave(family: str) -> None:
    model = make(family)
    config = settings(eos_token_id=ends_of(model))
    plain = model.generate(**padded(), generation_config=config)
    with rows_computed(model) as rows:
        found = generate(model.generate, **padded(), generation_config=config)
    assert torch.equal(found, plain)
    lengths = ends_at(plain[:, padded()["input_ids"].size(1) :], config.eos_token_id)
    assert len(set(lengths)) > 1, "the rows of this test should end at different times"
    if family in LEAVING:
        assert rows == remaining(lengths)
    else:  # perhaps after one pass that showed it
        assert set(rows) == {len(PROMPTS)} and len(rows) <= max(lengths) + 1


@pytest.mark.parametrize("family", LEAVING)
def test_a_row_sees_the_logits_of_a_full_forward_pass(family: str) -> None:
    model, seen = make(family), []

    def record(input_ids: Tensor, scores: Tensor) -> Tensor:
        seen.append((input_ids, scores.clone()))
        return scores

    torch.manual_seed(0)
    config = settings(do_sample=True, top_k=0, eos_token_id=[2, *range(40, 50)])
    generate(model.generate, **padded(), generation_config=config, logits_processor=[record])
    assert len({len(ids) for ids, _ in seen}) > 3
    width = padded()["input_ids"].size(1)
    for ids, scores in seen:
        for row, score in zip(ids, scores):
            prompt = next(prompt for prompt in PROMPTS if row[:width].tolist()[-len(prompt) :] == prompt)
            with torch.no_grad():
                whole = model(row[width - len(prompt) :].unsqueeze(0)).logits[0, -1]
            torch.testing.assert_close(score, whole, rtol=1e-5, atol=1e-5 * whole.abs().max().item())


def enumerated(model: Any, prompt: list[int], ends: set[int], longest: int, temperature: float) -> dict[Any, float]:
    """The probability of every completion, by full forward passes."""
    found, open_ones = {}, {(): 1.0}
    while open_ones:
        done, probability = open_ones.popitem()
        logits = model(torch.tensor([[*prompt, *done]])).logits[0, -1].double() / temperature
        for token, chance in enumerate(logits.softmax(-1).tolist()):
            completion = (*done, token)
            ended = token in ends or len(completion) == longest
            (found if ended else open_ones)[completion] = probability * chance
    return found


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_completions_have_the_models_own_distribution(temperature: float) -> None:
    """Two prompts in one batch whose completions of at most 4 tokens are counted against their exact probabilities."""
    torch.manual_seed(3)
    config = transformers.Qwen3Config(**SIZES | {"vocab_size": 4, "initializer_range": 0.2})
    model, draws, ends = transformers.Qwen3ForCausalLM(config).eval(), 6000, {1, 3}
    prompts = [[2], [0, 2, 0]]
    drawing = settings(do_sample=True, top_k=0, temperature=temperature, eos_token_id=list(ends), max_new_tokens=4)
    with rows_computed(model) as rows:
        sampled = generate(model.generate, **padded(prompts * draws), generation_config=drawing)[:, 3:]
    assert rows == sorted(rows, reverse=True) and rows[-1] < rows[0] / 4
    for start, prompt in enumerate(prompts):
        exact = enumerated(model, prompt, ends, 4, temperature)
        assert sum(exact.values()) == pytest.approx(1)
        counts, expected = Counter[Any](), Counter[Any]()
        kept = {completion for completion, chance in exact.items() if chance * draws > 5}  # the others as one
        for completion, chance in exact.items():
            expected[completion if completion in kept else None] += chance * draws
        for row, length in zip(sampled[start::2].tolist(), ends_at(sampled[start::2], ends)):
            completion = tuple(row[:length])
            counts[completion if completion in kept else None] += 1
        assert scipy.stats.chisquare([counts[one] for one in expected], list(expected.values())).pvalue > 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"repetition_penalty": 1.7},
        {"suppress_tokens": list(range(20, 40))},
        {"pad_token_id": 5, "eos_token_id": 5},
        {"do_sample": True, "top_k": 1, "temperature": 0.5},
        {"do_sample": True, "top_k": 0, "top_p": 1e-6},
        {"max_new_tokens": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_act_as_they_do_in_generate(changes: dict[str, Any]) -> None:
    model = make("Qwen3")
    free = {name: value for name, value in changes.items() if name != "eos_token_id"}
    config = settings(**{"eos_token_id": ends_of(model, **free)} | changes)
    plain = model.generate(**padded(), generation_config=config)
    assert torch.equal(generate(model.generate, **padded(), generation_config=config), plain)


@pytest.mark.parametrize("changes", [{"cache_implementation": "static"}, {"use_cache": False}])
def test_without_a_cache_that_can_be_divided_transformers_decodes(changes: dict[str, Any]) -> None:
    model = make("Qwen3")
    config = settings(eos_token_id=ends_of(model), disable_compile=True, **changes)
    with rows_computed(model) as rows:
        found = generate(model.generate, **padded(), generation_config=config)
    assert set(rows) == {len(PROMPTS)}
    assert torch.equal(found, model.generate(**padded(), generation_config=config))


def test_an_adapter_is_decoded_with() -> None:
    import peft

    model = peft.get_peft_model(
        transformers.Qwen3ForCausalLM(make("Qwen3").config).eval(),
        peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    config = settings(eos_token_id=ends_of(model))
    with rows_computed(model) as rows:
        found = generate(model.generate, **padded(), generation_config=config)
    assert rows[-1] < rows[0] == len(PROMPTS)
    assert torch.equal(found, model.generate(**padded(), generation_config=config))

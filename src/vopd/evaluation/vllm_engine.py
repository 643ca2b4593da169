"""Sampling with vLLM, which batches requests itself: use a large batch_size."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vopd.data.chat import Rendered
from vopd.errors import MismatchError, MissingExtraError, installed
from vopd.models import Completion, load_configuration, load_tokenizer, rollout_settings
from vopd.models.files.adapter_folders import Adapter, find_adapter
from vopd.models.files.model_paths import check_source
from vopd.models.sampling import vllm_bias

from .benchmarks import Protocol
from .engines import Sampler

# Settings of LoRA that change more than vLLM applies.
_NOT_SERVED = ("use_dora", "modules_to_save", "trainable_token_indices")
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_SECONDS_TO_END = 60


def open_vllm(model: str | Path, dtype: str, revision: str | None, limits: Mapping[str, Any]) -> Sampler:
    """A sampler with its own vLLM engine; a LoRA adapter is served on its base model.

    Completions end at the same EOS tokens as with ``sample``, and padding rows of the head are never sampled.

    Args:
        model: folder or Hub id.
        dtype, revision: dtype and revision of the model.
        limits: vLLM's gpu_memory_utilization and max_model_len, if they are given.

    Raises:
        ConfigurationError: the head has more padding rows than vLLM can exclude from sampling.
        MissingExtraError: vLLM is not installed.
        MismatchError: the model or its tokenizer cannot be loaded, or vLLM does not serve adapters of its rank.
    """
    if not installed("vllm"):
        raise MissingExtraError("the backend vllm needs vLLM; on a GPU machine: pip install vllm")
    vllm = importlib.import_module("vllm")
    options: dict[str, Any] = {"model": str(model), "dtype": dtype, "revision": revision, **limits}
    check_source(model, revision)
    found_adapter, adapter = find_adapter(model, revision), None
    if found_adapter is not None:
        options |= {"model": found_adapter.base, "revision": found_adapter.base_revision}
        options |= {"enable_lora": True, "max_lora_rank": _served_rank(found_adapter)}
        folder = str(found_adapter.folder())
        adapter = importlib.import_module("vllm.lora.request").LoRARequest("adapter", 1, folder)
    # Before the engine starts, so that a failure here does not leave one running.
    tokenizer = load_tokenizer(model, revision=revision)
    settings = rollout_settings(load_configuration(model, revision=revision), tokenizer)
    shared = {
        "ignore_eos": True,  # vLLM's own EOS tokens, which are the base model's
        "stop_token_ids": [token for token in settings.end_ids if token < settings.rows],
        "logit_bias": vllm_bias(settings.never_sampled, engine="this command") or None,
    }
    engine = vllm.LLM(**options)

    def draw(prompts: Sequence[Rendered], protocol: Protocol, seed: int) -> list[Completion]:
        common = {"temperature": protocol.temperature, "top_p": protocol.top_p, "top_k": protocol.top_k, **shared}
        limit = protocol.max_new_tokens
        # One seed per request: samples must not depend on the order in which vLLM works.
        seeds = [(seed + index) % 2**31 for index in range(len(prompts))]
        settings = [vllm.SamplingParams(**common, max_tokens=limit, seed=own) for own in seeds]
        replies = engine.generate(
            [{"prompt_token_ids": prompt.ids} for prompt in prompts], settings, lora_request=adapter, use_tqdm=False
        )
        outputs = [reply.outputs[0] for reply in replies]
        return [Completion(one.text, tuple(one.token_ids), one.finish_reason == "length") for one in outputs]

    def close() -> None:
        # LLM itself cannot be shut down. A worker may need more than vLLM's default of five seconds: it is then killed
        # and still holds its memory when the next engine measures what is free.
        engine.llm_engine.engine_core.shutdown(timeout=_SECONDS_TO_END)

    return Sampler(tokenizer, draw, close)


def _served_rank(adapter: Adapter) -> int:
    """The limit of ranks that vLLM has to be started with for this adapter."""
    other = [name for name in _NOT_SERVED if adapter.config.get(name)]
    if adapter.kind != "LORA" or other:
        what = ", ".join([adapter.kind, *other])
        raise MismatchError(
            f"vLLM serves plain LoRA, and the adapter '{adapter.source}' is another ({what}); use backend=transformers "
            "or vopd merge"
        )
    rank = next((size for size in _LORA_RANKS if size >= adapter.config["r"]), None)
    if rank is None:
        raise MismatchError(
            f"the adapter '{adapter.source}' has rank {adapter.config['r']}, but vLLM serves ranks up to "
            f"{_LORA_RANKS[-1]}; use backend=transformers"
        )
    return rank

"""Drawing with vLLM, which batches by itself: give the runner large batches."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vopd.errors import MismatchError, MissingExtraError
from vopd.models import Completion, end_ids, load_configuration, load_tokenizer
from vopd.models.textless import vllm_bias

from .benchmarks import Protocol
from .engines import Sampler

_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_SECONDS_TO_END = 60


def open_vllm(model: str | Path, dtype: str, revision: str | None, limits: Mapping[str, Any]) -> Sampler:
    """A sampler on a vLLM engine of its own; a LoRA adapter is served on its base model.

    Completions end where ``sample`` ends them, and head rows without a token are not drawn.

    Args:
        model: folder or Hub id.
        dtype, revision: of the model.
        limits: vLLM's gpu_memory_utilization and max_model_len, where they are given.

    Raises:
        ConfigurationError: more head rows without a token than vLLM can keep from being drawn.
        MissingExtraError: vLLM is not installed.
        MismatchError: the model or its tokenizer cannot be loaded, or vLLM does not serve adapters of its rank.
    """
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError("the backend vllm needs vLLM; on a GPU machine: pip install vllm")
    vllm = importlib.import_module("vllm")
    folder, adapter = Path(model), None
    options: dict[str, Any] = {"model": str(model), "dtype": dtype, "revision": revision, **limits}
    if (folder / "adapter_config.json").exists():
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        rank = next((size for size in _LORA_RANKS if size >= config["r"]), None)
        if rank is None:
            raise MismatchError(f"'{model}' has rank {config['r']}; vLLM serves up to {_LORA_RANKS[-1]}")
        options |= {"model": config["base_model_name_or_path"], "revision": None}
        options |= {"enable_lora": True, "max_lora_rank": rank}
        adapter = importlib.import_module("vllm.lora.request").LoRARequest("adapter", 1, str(folder))
    # Before the engine: what fails here leaves none behind.
    tokenizer, found = load_tokenizer(model, revision=revision), load_configuration(model, revision=revision)
    rows = found.config.get_text_config().vocab_size
    shared = {
        "ignore_eos": True,  # vLLM's own end tokens, which are the base model's
        "stop_token_ids": [token for token in end_ids(found, tokenizer) if token < rows],
        "logit_bias": vllm_bias(range(len(tokenizer), rows), engine="this command") or None,
    }
    engine = vllm.LLM(**options)

    def draw(prompts: Sequence[str], protocol: Protocol, seed: int) -> list[Completion]:
        common = {"temperature": protocol.temperature, "top_p": protocol.top_p, "top_k": protocol.top_k, **shared}
        limit = protocol.max_new_tokens
        # A seed for each request: vLLM's own order of work must not decide what is drawn.
        seeds = [(seed + index) % 2**31 for index in range(len(prompts))]
        settings = [vllm.SamplingParams(**common, max_tokens=limit, seed=own) for own in seeds]
        replies = engine.generate(list(prompts), settings, lora_request=adapter, use_tqdm=False)
        outputs = [reply.outputs[0] for reply in replies]
        return [Completion(one.text, tuple(one.token_ids), one.finish_reason == "length") for one in outputs]

    def close() -> None:
        # LLM itself has no way to end. In the five seconds that vLLM takes by default a worker may not be done: it is
        # killed, and still holds its memory when the next engine looks how much there is.
        engine.llm_engine.engine_core.shutdown(timeout=_SECONDS_TO_END)

    return Sampler(tokenizer, draw, close)

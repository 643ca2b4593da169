"""Engines that sample completions for the runner: transformers here, vLLM on request."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from vopd.data.chat import Rendered
from vopd.models import Completion, best_device, device_name, load_model, load_tokenizer, sample
from vopd.placement import described

from .backend import Backend
from .benchmarks import Protocol

logger = logging.getLogger(__name__)

Draw = Callable[[Sequence[Rendered], Protocol, int], list[Completion]]
"""``draw(prompts, protocol, seed)``: one completion per prompt, in order; the same arguments give the same texts."""


@dataclass(frozen=True)
class Sampler:
    """A loaded model: its tokenizer, and a function that samples a batch. `close` releases resources outside this
    process; a `with` block calls it at its end."""

    tokenizer: Any
    draw: Draw
    close: Callable[[], None] = lambda: None

    def __enter__(self) -> Sampler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_sampler(source: str, backend: Backend, dtype: str, device: str, revision: str | None) -> Sampler:
    """Load the model of a folder or Hub id. A LoRA adapter is loaded onto its base model without merging.

    Raises:
        MissingExtraError: vLLM is requested but not installed.
        MismatchError: the model or its tokenizer cannot be loaded.
    """
    if backend.name == "vllm":
        from .vllm_engine import open_vllm

        return open_vllm(source, dtype, revision, backend.limits)
    model = load_model(source, dtype=dtype, device=best_device(device), revision=revision).requires_grad_(False)
    logger.info("parameters: %s %s, on %s", source, described(model, model.device), device_name(model.device))
    return transformers_sampler(model, load_tokenizer(source, revision=revision))


def transformers_sampler(model: Any, tokenizer: Any) -> Sampler:
    """A sampler of a loaded model. Leaves the model's training mode and the random state unchanged."""

    def draw(prompts: Sequence[Rendered], protocol: Protocol, seed: int) -> list[Completion]:
        return sample(
            model, tokenizer, [prompt.ids for prompt in prompts],
            temperature=protocol.temperature, top_p=protocol.top_p, top_k=protocol.top_k,
            max_new_tokens=protocol.max_new_tokens, batch_size=len(prompts), seed=seed,
        )  # fmt: skip

    return Sampler(tokenizer, draw)

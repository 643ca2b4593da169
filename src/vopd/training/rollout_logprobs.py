"""Log-probabilities of the sampled tokens, as reported by the rollout engine.

Where they differ from the trainer's, the rollout was slightly off-policy: another precision, another kernel, or weights
not yet synchronized. Importance weights correct for that; the size of the difference shows whether something is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vopd.errors import ConfigurationError, DataError, MissingExtraError, NonFiniteError, counted, installed

from .monitoring.metrics import Averages

MEAN_DIFFERENCE = "rollout/logprob_difference_mean"
MAX_DIFFERENCE = "rollout/logprob_difference_max"


def check_engine(use_vllm: bool, weighted: bool | None, tools: Any) -> None:
    """Raises ConfigurationError if the rollout engine is missing, or cannot provide what importance weights need."""
    if use_vllm and not has_vllm():
        raise MissingExtraError(
            "vllm is needed for use_vllm; install it on a machine with a GPU with pip install 'trl[vllm]', or set "
            "use_vllm=false"
        )
    if weighted and tools:
        raise ConfigurationError("importance_sampling does not work through tool calls; set importance_sampling=false")


def check_completions(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> None:
    """Raises DataError if a completion is empty: even one that stops at once has its EOS token."""
    empty = [len(prompt) for prompt, completion in zip(prompts, completions, strict=True) if not len(completion)]
    if empty:
        raise DataError(
            f"the rollout engine returned no token for {len(empty)} of {counted(len(completions), 'prompt')}, the "
            f"first of {counted(empty[0], 'token')}; check the engine's log, or set max_prompt_length so that every "
            "prompt fits into the engine's context with space for a completion"
        )


def has_vllm() -> bool:
    """Whether vLLM is installed; does not import it."""
    return installed("vllm")


def sampled_logprobs(
    completions: Sequence[Sequence[int]], logprobs: Sequence[Any] | None, ids: Sequence[Any] | None
) -> list[list[float]] | None:
    """Return the log-probability of each token of each completion; None if the engine reports none.

    Args:
        completions: sampled ids.
        logprobs: (completions, tokens, alternatives) as vLLM reports them, including the sampled token's.
        ids: the ids that they belong to, of the same shape; not needed with one alternative.

    Raises:
        NonFiniteError: a token's log-probability is missing, not finite, or reported for other tokens only.
    """
    if logprobs is None:
        return None
    found = []
    for row, (completion, reported) in enumerate(zip(completions, logprobs, strict=True)):
        if len(reported) != len(completion):
            raise NonFiniteError(
                f"the rollout engine reported {counted(len(reported), 'log-probability', 'log-probabilities')} for "
                f"{counted(len(completion), 'token')}; set importance_sampling=false"
            )
        row_ids = [None] * len(completion) if ids is None else ids[row]
        found.append([_of_token(*token) for token in zip(completion, reported, row_ids, strict=True)])
    if not all(math.isfinite(value) for row in found for value in row):
        raise NonFiniteError(
            "the rollout engine reported a log-probability that is not finite; check the engine's log, or set "
            "importance_sampling=false"
        )
    return found


def _of_token(token: int, logprobs: Sequence[float | None], ids: Sequence[int] | None) -> float:
    if ids is not None and token not in ids:
        raise NonFiniteError(
            f"the rollout engine sampled token {token} but reported log-probabilities of {', '.join(map(str, ids))}; "
            "set importance_sampling=false"
        )
    value = logprobs[0 if ids is None else list(ids).index(token)] if logprobs else None
    return math.nan if value is None else float(value)


def padded(logprobs: Sequence[Sequence[float]], like: Tensor) -> Tensor:
    """Return log-probabilities as a float32 tensor with the shape of the completion ids `like`, 0 on padding."""
    found = torch.zeros(like.shape, dtype=torch.float32)
    for index, row in enumerate(logprobs):
        found[index, : len(row)] = torch.tensor(row)
    return found.to(like.device)


class RolloutDifference:
    """Collects |log p_trainer(y) - log p_rollout(y)|: the mean goes into the averages, the maximum is kept here."""

    def __init__(self) -> None:
        self._largest: Tensor | None = None

    def add(self, averages: Averages, trainer: Tensor, rollout: Tensor, mask: Tensor) -> None:
        """Add the tokens of a micro-batch where `mask` is 1. All (B, T)."""
        difference = (trainer.detach().float() - rollout).abs().masked_fill(mask == 0, 0)
        averages.add(MEAN_DIFFERENCE, difference, mask)
        largest = difference.max()
        self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)

    def reduce(self, accelerator: Any) -> dict[str, float]:
        """The largest difference over all ranks since the last call. A collective where anything was added."""
        largest, self._largest = self._largest, None
        if largest is None:
            return {}
        return {MAX_DIFFERENCE: float(accelerator.gather(largest.reshape(1)).max())}

"""Rollouts, a prompt and what a model sampled after it each, and several of them as one padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vopd.models import sample


@dataclass(frozen=True)
class Rollout:
    """A prompt and the completion that the student sampled after it, both at least one token."""

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]


@dataclass(frozen=True)
class RolloutBatch:
    """Rollouts padded on the left: ids and masks are (rollouts, tokens).

    `completion_mask` is 1 at the completions' tokens, their end token included.
    """

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What a model is called with."""
        positions = (self.attention_mask.cumsum(1) - 1).clamp(min=0)
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, "position_ids": positions}


def sample_rollouts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[Rollout]:
    """Sample one completion a prompt from the model's own distribution."""
    rows = sample(
        model, tokenizer, prompts, temperature=temperature, max_new_tokens=max_new_tokens, batch_size=batch_size,
        seed=seed,
    )  # fmt: skip
    prompt_ids = tokenizer(list(prompts))["input_ids"]
    return [Rollout(ids, row[0].ids) for ids, row in zip(prompt_ids, rows, strict=True)]


def pad(rollouts: Sequence[Rollout], device: torch.device, pad_token_id: int = 0) -> RolloutBatch:
    """Lay rollouts out for scoring; what the padding holds has no effect."""
    width = max(len(rollout.prompt_ids) + len(rollout.completion_ids) for rollout in rollouts)
    input_ids = torch.full((len(rollouts), width), pad_token_id)
    attention_mask, completion_mask = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
    for row, rollout in enumerate(rollouts):
        ids = torch.tensor([*rollout.prompt_ids, *rollout.completion_ids])
        input_ids[row, width - len(ids) :] = ids
        attention_mask[row, width - len(ids) :] = 1
        completion_mask[row, width - len(rollout.completion_ids) :] = 1
    return RolloutBatch(*(part.to(device) for part in (input_ids, attention_mask, completion_mask)))

"""Rollouts (a prompt and a sampled completion), and several of them as one padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vopd.models import sample
from vopd.teachers.texts import Lengths


@dataclass(frozen=True)
class Rollout:
    """A prompt and the completion that the student sampled, both at least one token."""

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]


def sample_rollouts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 1.0,
    seed: int = 0,
    vocab_size: int | None = None,
) -> list[Rollout]:
    """Sample one completion per prompt, a text or token ids, from the model's own distribution; arguments as for
    `vopd.models.sample`."""
    found = sample(
        model, tokenizer, prompts, temperature=temperature, max_new_tokens=max_new_tokens, batch_size=batch_size,
        seed=seed, vocab_size=vocab_size,
    )  # fmt: skip
    prompt_ids = [tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt for prompt in prompts]
    return [Rollout(ids, drawn.ids) for ids, drawn in zip(prompt_ids, found, strict=True)]


def pad(rollouts: Sequence[Rollout], device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """Pad rollouts on the left into one batch; the padding has no effect.

    Returns:
        The model's inputs, and a mask that is 1 at the completions' tokens, EOS included; all (rollouts, tokens).
    """
    ids = [torch.tensor([*rollout.prompt_ids, *rollout.completion_ids]) for rollout in rollouts]
    masks = [torch.ones_like(row) for row in ids]
    places = [torch.arange(len(row)) >= len(rollout.prompt_ids) for row, rollout in zip(ids, rollouts, strict=True)]
    input_ids, attention_mask, completion_mask = (
        pad_sequence(rows, batch_first=True, padding_side="left").to(device) for rows in (ids, masks, places)
    )
    positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": positions}
    return inputs, completion_mask.long()


def like_length(rollouts: Sequence[Rollout], size: int) -> list[list[int]]:
    """Indices of rollouts of like length in groups of at most `size`; the longest first."""
    prompts, completions = zip(*((len(rollout.prompt_ids), len(rollout.completion_ids)) for rollout in rollouts))
    return Lengths({"prompt": prompts, "completion": completions}).equal(-(-len(rollouts) // size))

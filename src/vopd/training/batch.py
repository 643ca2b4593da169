"""What a micro-batch brings to the teachers and to the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vopd.teachers import Rollouts, Scored, States
from vopd.teachers.columns import PLACES, PROMPT_IDS, PROMPT_MASK


@dataclass(frozen=True)
class MicroBatch:
    """What one micro-batch brings to the loss. Hidden states at t predict ``completion_ids[:, t]``.

    Attributes:
        student: its states, with gradient.
        scored: what the teachers say, each on its tokens.
        completion_ids: (B, T).
        loss_mask: (B, T), as `loss_mask` of the inputs.
        rollout_logprobs: (B, T), log p(y) as the rollout engine reported it; None where it did not.
        inputs: the whole micro-batch as TRL made it: prompt_ids, prompt_mask, completion_mask, ...
    """

    student: States
    scored: Sequence[Scored]
    completion_ids: Tensor
    loss_mask: Tensor
    rollout_logprobs: Tensor | None
    inputs: dict[str, Any]


def loss_mask(inputs: dict[str, Any]) -> Tensor:
    """(B, T): 1 where a completion token was sampled by the student and has a score.

    0 on padding, on what a tool returned, and in rows that no teacher scored.
    """
    mask = inputs["completion_mask"]
    mask = mask * inputs["tool_mask"] if "tool_mask" in inputs else mask
    return mask * inputs["scored_rows"].to(mask.dtype).unsqueeze(-1) if "scored_rows" in inputs else mask


def rollouts_of(inputs: dict[str, Any]) -> Rollouts:
    """What a teacher needs of a generated batch or a micro-batch: with its own prompts, where it has some.

    A completion's positions are counted from its end, so that prompts of any length line up.
    """
    own = PROMPT_IDS in inputs
    return Rollouts(
        prompt_ids=inputs[PROMPT_IDS if own else "prompt_ids"],
        prompt_mask=inputs[PROMPT_MASK if own else "prompt_mask"],
        completion_ids=inputs["completion_ids"],
        completion_mask=inputs["completion_mask"],
        loss_mask=loss_mask(inputs),
        rows=inputs.get("rollout_rows"),
        teachers=inputs.get(PLACES),
    )


def sequence(rollouts: Rollouts) -> tuple[Tensor, Tensor, int]:
    """Ids and attention mask of prompts with completions, and how many of the last positions predict a token."""
    return student_sequence(vars(rollouts))


def student_sequence(inputs: dict[str, Any]) -> tuple[Tensor, Tensor, int]:
    """The same of a micro-batch, with the prompts that the student reads."""
    return (
        torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
        torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
        inputs["completion_ids"].size(1),
    )

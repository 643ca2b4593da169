"""A batch of completions with everything known about them, from the rollout to the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from vopd.teachers import Rollouts
from vopd.teachers.texts import Texts

_ON_THE_HOST = ("rollout_rows", "sample_order", "teacher_places")


@dataclass(frozen=True)
class Batch(Texts):
    """Completions of one generation, or of a micro-batch of it, with the prompts that the student reads.

    transformers and TRL hand batches on as dicts of tensors. The keys are the names of these fields and are defined
    only here.

    Attributes:
        num_items_in_batch: number of tokens in the step's loss, over all processes, a scalar.
        tool_mask: (B, T), 0 on tokens that a tool returned.
        rollout_logprobs: (B, T), log p(y) as reported by the rollout engine; None if it does not report it.
        rollout_rows: (B,), a number that identifies each row to its teacher, on the host.
        sample_order: (B,), place of each row in a random order of the generation, on the host: samples.jsonl has the
            first.
        scored_rows: (B,) booleans: rows that have scores; None if all do.
        repeated_rows: (B,) booleans: rows that fill up an evaluation's last batch and count for nothing; None if none.
        teacher_places: (B,), index of each row's teacher among several, on the host.
        teacher_prompt_ids, teacher_prompt_mask: (B, P'), prompts that the teacher reads instead, padded on the left.
        scores: (B, F) of the reward functions, NaN where a function gave none.
        group_advantages: (B,), advantages of the rewards.
        teacher_width: ``width`` with the prompts that the teacher reads instead.
    """

    num_items_in_batch: Tensor | None = None
    tool_mask: Tensor | None = None
    rollout_logprobs: Tensor | None = None
    rollout_rows: Tensor | None = None
    sample_order: Tensor | None = None
    scored_rows: Tensor | None = None
    repeated_rows: Tensor | None = None
    teacher_places: Tensor | None = None
    teacher_prompt_ids: Tensor | None = None
    teacher_prompt_mask: Tensor | None = None
    scores: Tensor | None = None
    group_advantages: Tensor | None = None
    teacher_width: int | None = None

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> Batch:
        """The batch that TRL holds as `entries`."""
        return cls(**{field.name: entries[field.name] for field in fields(cls) if field.name in entries})

    def entries(self) -> dict[str, Any]:
        """The dict that transformers hands to the loss."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def to(self, device: torch.device) -> Batch:
        """The batch on another device, except for the fields that the host reads."""
        moved: dict[str, Any] = {
            name: value if name in _ON_THE_HOST or not isinstance(value, Tensor) else value.to(device)
            for name, value in self.entries().items()
        }
        return replace(self, **moved)

    @property
    def loss_mask(self) -> Tensor:
        """(B, T): 1 where a completion token was sampled by the student and has a score.

        0 on padding, on tokens that a tool returned, and in rows that no teacher scored or that are repeated.
        """
        mask = self.completion_mask
        mask = mask if self.tool_mask is None else mask * self.tool_mask
        mask = mask if self.repeated_rows is None else mask * self.counted_rows.to(mask.dtype).unsqueeze(-1)
        return mask if self.scored_rows is None else mask * self.scored_rows.to(mask.dtype).unsqueeze(-1)

    @property
    def counted_rows(self) -> Tensor:
        """(B,) booleans: rows that are not repeated."""
        if self.repeated_rows is None:
            return torch.ones_like(self.completion_ids[:, 0], dtype=torch.bool)
        return ~self.repeated_rows

    @property
    def rollouts(self) -> Rollouts:
        """What a teacher needs, with its own prompts if it has some."""
        return Rollouts(
            prompt_ids=self.prompt_ids if self.teacher_prompt_ids is None else self.teacher_prompt_ids,
            prompt_mask=self.prompt_mask if self.teacher_prompt_mask is None else self.teacher_prompt_mask,
            completion_ids=self.completion_ids,
            completion_mask=self.completion_mask,
            loss_mask=self.loss_mask,
            rows=self.rollout_rows,
            teachers=self.teacher_places,
            width=self.width if self.teacher_prompt_ids is None else self.teacher_width,
        )

    @property
    def token_advantages(self) -> Tensor | None:
        """The group advantages, broadcast over tokens to (B, T); None without rewards."""
        if self.group_advantages is None:
            return None
        return self.group_advantages.unsqueeze(-1).expand(self.completion_ids.shape)

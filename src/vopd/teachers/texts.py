"""Prompts with completions as a padded batch, and the batch cut into micro-batches of like length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

_PROMPTS = ("prompt", "teacher_prompt")
# Padded on the right, as completions are.
_OF_COMPLETIONS = ("completion_ids", "completion_mask", "loss_mask", "tool_mask", "rollout_logprobs")
_COMPLETION = "completion"


@dataclass(frozen=True)
class Texts:
    """Token ids of prompts, (B, P), padded on the left, and of completions, (B, T), padded on the right.

    Masks are 0 on padding.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor

    @property
    def sequence(self) -> tuple[Tensor, Tensor, int]:
        """Ids and attention mask of prompts with completions, and the number of completion positions.

        Completion positions are counted from the end, so that prompts of any length align.
        """
        ids = torch.cat([self.prompt_ids, self.completion_ids], dim=1)
        return ids, torch.cat([self.prompt_mask, self.completion_mask], dim=1), self.completion_ids.size(1)

    def unpadded(self) -> list[tuple[list[int], list[int]]]:
        """The ids of each prompt and of its completion, without padding."""
        prompts = _without_padding(self.prompt_ids, self.prompt_mask)
        return list(zip(prompts, _without_padding(self.completion_ids, self.completion_mask), strict=True))

    def lengths(self) -> Lengths:
        """Tokens of every prompt and completion. Waits for the device once."""
        masks = {name: getattr(self, f"{name}_mask", None) for name in (*_PROMPTS, _COMPLETION)}
        given = {name: mask.sum(1) for name, mask in masks.items() if mask is not None}
        return Lengths(dict(zip(given, torch.stack(list(given.values())).tolist(), strict=True)))

    def cut(self, groups: Sequence[Sequence[int]], lengths: Lengths, multiple: int = 1) -> list[Self]:
        """The rows of each group as a batch of its own, without the padding that none of them needs.

        Args:
            groups: rows of each batch.
            lengths: ``self.lengths()``.
            multiple: widths are multiples of it, as this batch's own are.
        """
        order = torch.tensor([row for group in groups for row in group], dtype=torch.long)
        values = {name: value for name, value in vars(self).items() if value is not None}
        rows = {name: value[order.to(value.device)] for name, value in values.items() if value.ndim}
        parts, start = [], 0
        for group in groups:
            widths = {part: -(-longest // multiple) * multiple for part, longest in lengths.longest(group).items()}
            stop = start + len(group)
            own = {name: _trimmed(name, value[start:stop], widths) for name, value in rows.items()}
            parts.append(replace(self, **own))
            start = stop
        return parts


@dataclass(frozen=True)
class Lengths:
    """Tokens of each row's prompts and completion, and how rows are grouped by them.

    Attributes:
        of: by part: "prompt", "teacher_prompt" if teachers read another one, and "completion".
    """

    of: Mapping[str, Sequence[int]]

    def longest(self, rows: Sequence[int]) -> dict[str, int]:
        """The longest of each part among `rows`, at least 1."""
        return {part: max([1, *(counts[row] for row in rows)]) for part, counts in self.of.items()}

    def width(self, rows: Sequence[int]) -> int:
        """Positions of a padded batch of `rows`: the longest prompt, whoever reads it, and the longest completion."""
        longest = self.longest(rows)
        return longest.pop(_COMPLETION) + max(longest.values())

    def equal(self, count: int) -> list[list[int]]:
        """Rows of like length in `count` groups of equal size, or one row more or less; the longest first."""
        order, rows = self._ordered(), len(self._ordered())
        bounds = [place * rows // count for place in range(count + 1)]
        return [order[start:stop] for start, stop in zip(bounds, bounds[1:])]

    def within(self, tokens: int) -> list[list[int]]:
        """Rows of like length in groups of at most so many tokens with their padding; the longest first.

        A row with more tokens has a group of its own.
        """
        groups: list[list[int]] = []
        for row in self._ordered():
            if groups and (len(groups[-1]) + 1) * self.width([*groups[-1], row]) <= tokens:
                groups[-1].append(row)
            else:
                groups.append([row])
        return groups

    def _ordered(self) -> list[int]:
        rows = range(len(self.of[_COMPLETION]))
        return sorted(rows, key=lambda row: (-self.width([row]), -self.of[_COMPLETION][row], row))


def halved(groups: Sequence[list[int]], count: int) -> list[list[int]]:
    """The groups with the most rows halved, in order, until there are `count`."""
    parts = list(groups)
    while len(parts) < count:
        place = max(range(len(parts)), key=lambda place: len(parts[place]))
        middle = len(parts[place]) // 2
        parts[place : place + 1] = [parts[place][:middle], parts[place][middle:]]
    return parts


def _without_padding(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[real.bool()].tolist() for row, real in zip(ids.cpu(), mask.cpu(), strict=True)]


def _trimmed(name: str, values: Tensor, widths: Mapping[str, int]) -> Tensor:
    if name in _OF_COMPLETIONS:
        return values[:, : widths[_COMPLETION]]
    part = next((part for part in _PROMPTS if name in (f"{part}_ids", f"{part}_mask")), None)
    return values if part is None else values[:, -widths[part] :]

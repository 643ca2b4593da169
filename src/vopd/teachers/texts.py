"""Prompts with completions as a padded batch, and the batch cut into micro-batches of like length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor

from vopd.models import Padded

_PROMPTS = ("prompt", "teacher_prompt")
# Padded on the right, as completions are.
_OF_COMPLETIONS = ("completion_ids", "completion_mask", "loss_mask", "tool_mask", "rollout_logprobs")
_COMPLETION = "completion"


@dataclass(frozen=True)
class Texts:
    """Token ids of prompts, (B, P), padded on the left, and of completions, (B, T), padded on the right.

    Masks are 0 on padding.

    Attributes:
        width: tokens of the longest prompt with its completion; None if not known.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    width: int | None = field(default=None, kw_only=True)

    @property
    def sequence(self) -> Padded:
        """Ids and attention mask of prompts with completions, the number of completion positions, and the width.

        Completion positions are counted from the end, so that prompts of any length align.
        """
        ids = torch.cat([self.prompt_ids, self.completion_ids], dim=1)
        mask = torch.cat([self.prompt_mask, self.completion_mask], dim=1)
        return ids, mask, self.completion_ids.size(1), self.width

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
        values = {name: value for name, value in vars(self).items() if isinstance(value, Tensor) and value.ndim}
        rows = {name: value[order.to(value.device)] for name, value in values.items()}
        parts, start = [], 0
        for group in groups:
            longest = {part: _rounded(count, multiple) for part, count in lengths.longest(group).items()}
            stop = start + len(group)
            own: dict[str, Any] = {name: _trimmed(name, value[start:stop], longest) for name, value in rows.items()}
            own |= {f"{reader}width": _rounded(count, multiple) for reader, count in lengths.widths(group).items()}
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

    def widths(self, rows: Sequence[int]) -> dict[str, int]:
        """Tokens of the longest of `rows`, prompt and completion, by who reads the prompt: "" or "teacher_"."""
        completions = self.of[_COMPLETION]
        return {
            prompt.removesuffix("prompt"): max([1, *(self.of[prompt][row] + completions[row] for row in rows)])
            for prompt in self.of.keys() - {_COMPLETION}
        }

    def total(self, row: int) -> int:
        """Tokens of a row, with the longer of its prompts."""
        return max(self.widths([row]).values())

    def equal(self, count: int) -> list[list[int]]:
        """Rows of like length in `count` groups of equal size, or one row more or less; the longest first."""
        order = self._ordered()
        bounds = [place * len(order) // count for place in range(count + 1)]
        return [order[start:stop] for start, stop in pairwise(bounds)]

    def within(self, tokens: int, multiple: int = 1) -> list[list[int]]:
        """Rows of like length in groups of at most so many tokens with their padding; the longest first.

        A row with more tokens has a group of its own. `multiple` is that of ``Texts.cut``.
        """
        groups: list[list[int]] = []
        for row in self._ordered():
            if groups and (len(groups[-1]) + 1) * _rounded(self.total(groups[-1][0]), multiple) <= tokens:
                groups[-1].append(row)
            else:
                groups.append([row])
        return groups

    def _ordered(self) -> list[int]:
        return sorted(range(len(self.of[_COMPLETION])), key=lambda row: (-self.total(row), row))


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


def _rounded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _trimmed(name: str, values: Tensor, widths: Mapping[str, int]) -> Tensor:
    if name in _OF_COMPLETIONS:
        return values[:, : widths[_COMPLETION]]
    part = next((part for part in _PROMPTS if name in (f"{part}_ids", f"{part}_mask")), None)
    return values if part is None else values[:, -widths[part] :]

"""Metrics of a step: sums over tokens, reduced over micro-batches and ranks, divided once at the end."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vopd.estimators import DistillationOutput

from ..batch import Batch

ZERO_SPREAD_SHARE = "/zero_spread_share"
"""Of one reward function: the end of the metric's name, ``rewards/NAME/zero_spread_share``."""
# Names of the last release, logged too for one more: "reward" was taken for the reward functions', `rewards/NAME`.
OLD_NAMES = {"teacher_reward/mean": "reward/mean", "teacher_reward/std": "reward/std"}


def with_old_names(metrics: dict[str, float]) -> dict[str, float]:
    """`metrics`, those that were renamed under both names."""
    return metrics | {old: metrics[name] for name, old in OLD_NAMES.items() if name in metrics}


class Averages:
    """Means and spreads, weighted over everything that was added since the last ``reduce``.

    Sums and counts stay on the device until then, so adding costs no synchronisation, and a mean over ranks with
    different numbers of tokens is the mean over all tokens. A name that nothing was added to has no value: metrics
    are absent where they were not computed, never 0.
    """

    def __init__(self) -> None:
        # By name and whether the spread is asked for: the sum of the values, of their weights, of the squares.
        self._sums: dict[tuple[str, bool], Tensor] = {}

    def add(self, name: str, values: Tensor | None, mask: Tensor | None = None, *, spread: bool = False) -> None:
        """Add `values`, if any, where `mask` is 1. With `spread`, report name/mean and name/std instead of name."""
        if values is None:
            return
        values = values.detach().to(_wide(values.device))
        counted = torch.ones_like(values) if mask is None else mask.to(values.dtype)
        kept = values.masked_fill(counted == 0, 0)
        self._add(name, spread, torch.stack([kept.sum(), counted.sum(), kept.square().sum()]))

    def add_total(self, name: str, total: float, count: float, device: torch.device) -> None:
        """Add a sum and its weight directly, such as seconds and steps."""
        self._add(name, False, torch.tensor([total, count, 0.0], dtype=_wide(device), device=device))

    def _add(self, name: str, spread: bool, part: Tensor) -> None:
        self._sums[name, spread] = self._sums.get((name, spread), 0) + part

    def reduce(self, accelerator: Any) -> dict[str, float]:
        """The averages over all ranks; starts over. A collective, in which ranks may have different names."""
        sums, self._sums = self._sums, {}
        sums = _of_all_ranks(sums, accelerator)
        if not sums:
            return {}
        parts = accelerator.reduce(torch.stack(list(sums.values())), reduction="sum").tolist()
        averages: dict[str, float] = {}
        for (name, spread), (total, count, squares) in zip(sums, parts, strict=True):
            if count:
                mean = total / count
                averages[f"{name}/mean" if spread else name] = mean
                if spread:
                    averages[f"{name}/std"] = math.sqrt(max(squares / count - mean * mean, 0.0))
        return {name: value for name, value in averages.items() if math.isfinite(value)}


def _of_all_ranks(sums: dict[tuple[str, bool], Tensor], accelerator: Any) -> dict[tuple[str, bool], Tensor]:
    """The sums in one order, with zeros for what only other ranks met, such as rows of one of several teachers."""
    if accelerator.num_processes == 1:
        return sums
    from accelerate.utils import gather_object

    zeros = torch.zeros(3, dtype=_wide(accelerator.device), device=accelerator.device)
    return {key: sums.get(key, zeros) for key in sorted(set(gather_object(list(sums))))}


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def add_token_metrics(averages: Averages, output: DistillationOutput, mask: Tensor, teacher: str | None = None) -> None:
    """Add what the loss computed, token by token; what it left out stays absent. `teacher`: one of several, by name."""
    averages.add("teacher_reward", output.rewards, mask, spread=True)
    averages.add("advantage", output.advantages, mask, spread=True)
    sampled = None if output.teacher_logprobs is None else output.student_logprobs - output.teacher_logprobs
    # With several teachers also for each one, at its own tokens.
    for suffix in [""] if teacher is None else ["", f"/{teacher}"]:
        averages.add(f"sampled_reverse_kl{suffix}", sampled, mask)
        averages.add(f"reverse_kl{suffix}", output.reverse_kl, mask)
    averages.add("entropy", output.entropy, mask)
    if output.variance is not None:
        for name, values in output.variance._asdict().items():
            averages.add(f"variance/{name}", values, mask)
        none, value, _ = output.variance
        averages.add("value_hurts_share", (value > none).to(value.dtype), mask)


def add_completion_metrics(averages: Averages, batch: Batch, end_ids: list[int]) -> None:
    """Add the length in sampled tokens of each completion of a generated batch, and whether it was cut off."""
    lengths = batch.completion_mask.sum(1)
    last = batch.completion_ids.gather(1, (lengths - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
    ended = torch.isin(last, torch.tensor(end_ids, device=last.device)) & (lengths > 0)
    averages.add("completion_length", batch.loss_mask.sum(1), batch.counted_rows)
    averages.add("truncated_share", (~ended).to(torch.float32), batch.counted_rows)

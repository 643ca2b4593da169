"""Warns if the weights' dtype is too coarse for the learning rate: updates that round away train nothing.

A step of Adam moves a weight by about the learning rate. In bfloat16 neighbouring numbers differ by 1/128 to 1/256 of
their size, and a move of less than half that distance leaves the weight as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

logger = logging.getLogger("vopd")

_SAMPLED = 1 << 16
_LIMIT = 0.5


def least_moves(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the smallest move of each weight that does not round away, half its distance to the next number, and how
    many weights each stands for; of a large tensor evenly spaced ones are looked at."""
    moves, counts = [torch.zeros(0)], [torch.zeros(0)]
    for weight in weights:
        flat = weight.detach().flatten()
        shown = flat[:: max(1, len(flat) // _SAMPLED)].float().cpu()
        halves = torch.finfo(weight.dtype).eps * torch.exp2(torch.frexp(shown)[1] - 2.0)
        moves.append(torch.where(shown == 0, 0.0, halves))
        counts.append(torch.full_like(shown, len(flat) / max(1, len(shown))))
    return torch.cat(moves), torch.cat(counts)


def rounded_away(weights: Sequence[Tensor], rate: float) -> tuple[float, float]:
    """Return the share of trained weights that a move of `rate` leaves as they are, and the rate at which it is half of
    the coarse ones.

    Args:
        weights: all trained weights; those in float32 always move.
        rate: the largest learning rate of the run.
    """
    moves, counts = least_moves([weight for weight in weights if weight.dtype.itemsize < 4])
    stuck = float(counts[moves > rate].sum()) / max(1, sum(weight.numel() for weight in weights))
    return stuck, float(moves.median()) if len(moves) else 0.0


class RoundedUpdates(TrainerCallback):
    """Looks at the weights once, before the first step. It says nothing of an optimizer that is not torch's Adam, whose
    steps may be of another size or rounded in another way."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = kwargs.get("optimizer")
        optimizer = getattr(optimizer, "optimizer", optimizer)  # within accelerate's
        if not (isinstance(optimizer, torch.optim.Adam) and state.is_world_process_zero):
            return
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        coarse = sorted({str(weight.dtype).removeprefix("torch.") for weight in weights if weight.dtype.itemsize < 4})
        if not coarse:
            return
        rate = max(float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups)
        share, enough = rounded_away(weights, rate)
        if share >= _LIMIT:
            logger.warning(
                "%.0f%% of the trained weights are in %s, where a step of Adam at learning_rate %.2g rounds away and "
                "leaves them as they are; load the student in float32 (dtype float32, with bf16 mixed precision on a "
                "GPU), train an adapter (lora_rank), or use a learning_rate well above %.1g",
                100 * share, " and ".join(coarse), rate, enough,
            )  # fmt: skip

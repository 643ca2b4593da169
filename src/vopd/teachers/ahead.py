"""A teacher in the training process that scores a generated batch as a whole, before its micro-batches."""

from __future__ import annotations

import torch
from torch import Tensor

from vopd.estimators.teacher_scores import EVERY_KIND, ScoreKind
from vopd.kernels import Head
from vopd.models import States
from vopd.placement import Placement

from .base import Rollouts, Scored, Teacher
from .local import InProcess
from .texts import halved

MICRO_BATCH, STEP, STEP_ON_HOST = "micro_batch", "step", "step_on_host"
SCORINGS = (MICRO_BATCH, STEP, STEP_ON_HOST)


class Ahead(Teacher):
    """``Teacher`` that computes the states of a generated batch at its begin, with another teacher in this process.

    Rows of like length go through the model together, at most as many tokens at a time as a micro-batch of the longest
    row has, and twice as many if every forward pass gathers shards: it keeps nothing for a gradient. More at a time
    would be more padding. The states at the completions' tokens, without padding, are kept until their micro-batch is
    scored, which then takes no forward pass.

    Args:
        teacher: computes the states.
        placement: where the models' weights are.
        rows: number of rows of a micro-batch.
        tokens: largest number of tokens of a micro-batch, if that decides instead.
        on_host: keep the states in host memory; with a GPU it is pinned.
    """

    gives: frozenset[ScoreKind] = EVERY_KIND

    def __init__(self, teacher: InProcess, placement: Placement, rows: int, tokens: int | None, on_host: bool) -> None:
        self._teacher, self._placement, self._rows, self._tokens = teacher, placement, rows, tokens
        self._at_once = 2 if placement.divided else 1
        self._home = torch.device("cpu") if on_host else None
        self._kept: dict[int, Tensor] = {}  # by the numbers of the rows
        self._head: Head | None = None  # one for all rows: each pass of a sharded teacher copies it whole

    def begin(self, rollouts: Rollouts) -> None:
        """Compute the states of all rows. Collective if the teacher is sharded, even without rows."""
        self._kept.clear()  # of a step that an error ended
        lengths = rollouts.lengths()
        longest = max(lengths.widths(range(len(rollouts.completion_ids))).values())
        groups = lengths.within(self._at_once * (self._tokens or self._rows * longest))
        groups = halved(groups or [[]], self._placement.most(len(groups)))
        self._kept.clear()  # an interrupted step may have left some
        with self._teacher.ready(self._placement.accelerator.device) as states:
            for group, part in zip(groups, rollouts.cut(groups, lengths), strict=True):
                self._keep(part, [lengths.of["completion"][row] for row in group], states(part))

    def _keep(self, part: Rollouts, tokens: list[int], found: States) -> None:
        assert part.rows is not None  # training numbers the rows of every generated batch
        for number, row, count in zip(part.rows.tolist(), found.hidden, tokens, strict=True):
            # From a GPU without waiting: torch then pins the copy, which only the same stream reads again.
            self._kept[number] = row[:count].to(self._home or row.device, copy=True, non_blocking=row.is_cuda)
            self._head = found.head

    def score(self, rollouts: Rollouts, student: States) -> list[Scored]:
        """The full distribution at every token of rows that it began with, and zeros on padding; each row once."""
        if rollouts.rows is None:
            return self._teacher.score(rollouts, student)
        kept = [self._kept.pop(number) for number in rollouts.rows.tolist()]
        if not kept:
            return []
        assert self._head is not None
        device, like = student.head.device, kept[0]
        hidden = like.new_zeros(len(kept), rollouts.completion_ids.size(1), like.size(1), device=device)
        for row, states in zip(hidden, kept, strict=True):
            row[: len(states)].copy_(states, non_blocking=True)
        head = self._head.to(device)
        if not self._kept:
            self._head = None  # the next rollout may need the memory
        return [Scored(States(hidden, head))]

"""Ends training when the teacher leaves too many completions without scores."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from vopd.errors import TeacherServerError

from ..batch import Batch
from .stopping import Stopping

_STEPS = 50
_FEWEST = 100


class DroppedRows(TrainerCallback):
    """Ends the run when too many completions were dropped, after finishing the step and saving a checkpoint.

    Args:
        limit: largest share of dropped completions over the last 50 steps; fewer than 100 completions count as 100, so
            that one failure in a small first batch does not end a run.
        stopping: ends the run.
    """

    def __init__(self, limit: float, stopping: Stopping) -> None:
        self.limit, self.stopping = limit, stopping
        self._steps: deque[tuple[int, int]] = deque(maxlen=_STEPS)

    def left_out(self, batch: Batch, scored: Tensor, accelerator: Any, counted: bool) -> Batch:
        """The batch of a step without rows that have no scores in its loss and normalizer, over all processes.

        Args:
            batch: all completions of this process.
            scored: (B,) booleans: rows that have scores.
            accelerator: the trainer's accelerator.
            counted: count the rows towards the limit.
        """
        batch = replace(batch, scored_rows=scored.to(accelerator.device))
        parts = (batch.loss_mask.sum(), (~scored).sum(), torch.ones_like(scored).sum())
        counts = torch.stack([part.to(accelerator.device) for part in parts])
        tokens, dropped, rows = accelerator.reduce(counts, reduction="sum")
        if counted:
            self._steps.append((int(dropped), int(rows)))
        return replace(batch, num_items_in_batch=tokens)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._steps.clear()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        dropped, rows = (sum(counts) for counts in zip(*self._steps)) if self._steps else (0, 0)
        if dropped <= self.limit * max(rows, _FEWEST):
            return
        error = TeacherServerError(
            f"the teacher left {dropped} of the last {rows} completions without scores, more than teacher_drop_limit="
            f"{self.limit:g}; a checkpoint of step {state.global_step} was saved: fix the server, then continue "
            "with --resume"
        )
        self.stopping.end(error, control)

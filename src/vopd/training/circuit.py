"""Ends a run that its teacher has left."""

from __future__ import annotations

from collections import deque
from typing import Any

from transformers import TrainerCallback

from ..errors import TeacherServerError

_STEPS = 50
_FEWEST = 100


class Circuit(TrainerCallback):
    """Opens when too many completions were dropped: the step is finished, a checkpoint saved, the run ended.

    Args:
        limit: share of the completions of the last 50 steps; fewer than 100 completions count as 100, so that one
            failure in a first small batch does not end a run.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._steps: deque[tuple[int, int]] = deque(maxlen=_STEPS)
        self._open = False

    def add(self, dropped: int, rows: int) -> None:
        """Count an optimizer step's rows, over all ranks."""
        self._steps.append((dropped, rows))
        self._open = self.dropped > self.limit * max(self.rows, _FEWEST)

    @property
    def dropped(self) -> int:
        """Completions without scores in the last steps."""
        return sum(dropped for dropped, _ in self._steps)

    @property
    def rows(self) -> int:
        """Completions of the last steps."""
        return sum(rows for _, rows in self._steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._open:
            control.should_save = control.should_training_stop = True

    def check(self) -> None:
        """Raises TeacherServerError if the run was ended."""
        if self._open:
            raise TeacherServerError(
                f"the teacher left {self.dropped} of the last {self.rows} completions without scores, more than "
                f"teacher_drop_limit={self.limit}; a checkpoint was saved: mend the server and resume the run"
            )

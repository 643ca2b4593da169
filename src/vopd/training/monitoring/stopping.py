"""Ends a run cleanly before its last step: finishes the step, saves a checkpoint, then raises the error."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from vopd.errors import Terminated, VOPDError

logger = logging.getLogger("vopd")


class Stopping(TrainerCallback):
    """Saves a checkpoint and ends the run after SIGTERM, or when a guard asks for it.

    Ranks agree at the end of each step: a signal that reaches one of them ends all at the same step.

    Args:
        accelerator: the trainer's accelerator.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.error: VOPDError | None = None
        self._signalled = False

    @contextmanager
    def until_done(self) -> Iterator[None]:
        """Context in which SIGTERM ends the run cleanly; on leaving it, raises what ended the run.

        Raises:
            Terminated: after SIGTERM.
            VOPDError: the error given to ``end``.
        """
        self.error, self._signalled = None, False
        with self._catching():
            yield
        if self.error is not None:
            raise self.error

    @contextmanager
    def _catching(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # Python allows handlers only there
            yield
            return
        owner = os.getpid()

        def note(number: int, frame: Any) -> None:
            if os.getpid() != owner:  # a data loader's process inherited this handler
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            elif not self._signalled:  # launchers and schedulers may both send one
                self._signalled = True
                logger.warning("SIGTERM: finishing this step, then saving a checkpoint")

        previous = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def end(self, error: VOPDError, control: Any) -> None:
        """Save after this step and end the run with `error`. Every rank has to call it at the same step."""
        self.error = self.error or error
        control.should_save = control.should_training_stop = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._anywhere():
            where = f"at step {state.global_step} of {state.max_steps}"
            self.end(Terminated(f"stopped by SIGTERM {where}; a checkpoint was saved: continue with --resume"), control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.error is not None:  # the epoch did not end: the resumed run does what belongs to its end
            control.should_log = control.should_evaluate = control.should_save = False

    def _anywhere(self) -> bool:
        if self.accelerator.num_processes == 1:
            return self._signalled
        flag = torch.tensor(float(self._signalled), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum") > 0)

"""Ends a run cleanly before its last step: finishes the step, saves a checkpoint, then raises the error."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from vopd.errors import Interrupted, Terminated, VOPDError

logger = logging.getLogger("vopd")

# What ends a run, and how: its name, and the error.
_SIGNALS: dict[int, tuple[str, type[VOPDError]]] = {
    signal.SIGINT: ("Ctrl-C", Interrupted),
    signal.SIGTERM: ("SIGTERM", Terminated),
}
_ECHO_SECONDS = 2.0


class Stopping(TrainerCallback):
    """Saves a checkpoint and ends the run after Ctrl-C or SIGTERM, or when a guard asks for it.

    Ranks agree at the end of each step: a signal that reaches one of them ends all at the same step. A second Ctrl-C
    ends the process at once.

    Args:
        accelerator: the trainer's accelerator.

    Attributes:
        command: what continues the run.
        error: what ends the run; None while it goes on.
        unplanned: whether the run would not have saved a checkpoint of this step without it.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.command = "trainer.train(resume_from_checkpoint=True)"
        self.error: VOPDError | None = None
        self.unplanned = False
        self._signal = 0
        self._interrupted: float | None = None

    @contextmanager
    def until_done(self) -> Iterator[None]:
        """Context in which Ctrl-C and SIGTERM end the run cleanly; on leaving it, raises what ended the run.

        Raises:
            Interrupted, Terminated: after Ctrl-C or SIGTERM.
            VOPDError: the error given to ``end``.
        """
        self.error, self.unplanned, self._signal, self._interrupted = None, False, 0, None
        try:
            with self._catching():
                yield
        except KeyboardInterrupt:
            logger.warning("ended without saving; to resume from the newest checkpoint: %s", self.command)
            raise
        if self.error is not None:
            raise self.error

    @contextmanager
    def _catching(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # Python allows handlers only there
            yield
            return
        owner = os.getpid()

        def note(number: int, frame: Any) -> None:
            if os.getpid() == owner:
                self._note(number)
            elif number == signal.SIGTERM:  # a data loader's process inherited this handler
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)  # Ctrl-C reaches it too, but the step needs it until its end

        previous: dict[int, Callable[..., Any] | int | None] = {
            number: signal.signal(number, note)
            for number in _SIGNALS
            if signal.getsignal(number) != signal.SIG_IGN  # as in a script that a shell has put into the background
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, number: int) -> None:
        if number == signal.SIGINT:
            last, self._interrupted = self._interrupted, time.monotonic()
            # A launcher passes on the Ctrl-C that its processes got from the terminal too.
            echo = self.accelerator.num_processes > 1 and last is not None and self._interrupted - last < _ECHO_SECONDS
            if last is not None and not echo:
                raise KeyboardInterrupt
        if not self._signal:  # launchers and schedulers may both send one
            self._signal = number
            again = "; again ends it at once, without saving" if number == signal.SIGINT else ""
            logger.warning("%s: finishing this step, then saving a checkpoint%s", _SIGNALS[number][0], again)

    def end(self, error: VOPDError, control: Any) -> None:
        """Save after this step and end the run with `error`. Every rank has to call it at the same step."""
        if self.error is None:
            self.error, self.unplanned = error, not control.should_save
        control.should_save = control.should_training_stop = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if number := self._anywhere():
            self.end(self._stopped(number, state), control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.error is not None:  # the epoch did not end: the resumed run does what belongs to its end
            control.should_log = control.should_evaluate = control.should_save = False

    def late(self, state: Any) -> bool:
        """Whether a signal came after the last step: the run ends with it, once a checkpoint is saved.

        Every rank has to call it.
        """
        if self.error is None and (number := self._anywhere()):
            self.error = self._stopped(number, state)
            return True
        return False

    def _stopped(self, number: int, state: Any) -> VOPDError:
        name, error = _SIGNALS[number]
        where = f"at step {state.global_step} of {state.max_steps}"
        return error(f"stopped by {name} {where}; a checkpoint was saved; to go on: {self.command}")

    def _anywhere(self) -> int:
        """The signal that any process got; 0 for none."""
        if self.accelerator.num_processes == 1:
            return self._signal
        numbers = torch.tensor([self._signal], device=self.accelerator.device)
        return int(self.accelerator.gather(numbers).max())

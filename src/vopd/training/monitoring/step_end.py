"""The random states at the end of a step: with them the next step can be repeated, if it is cut off."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
import torch
from transformers import TrainerCallback


class StepEnd(TrainerCallback):
    """Keeps the random states of this process after each step, and after an evaluation that follows it.

    Args:
        accelerator: the trainer's accelerator.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self._restore: list[Callable[[], Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._restore = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        python, arrays, host = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
        self._restore = [
            lambda: random.setstate(python),
            lambda: numpy.random.set_state(arrays),
            lambda: torch.set_rng_state(host),
        ]
        if torch.cuda.is_available():
            device = torch.cuda.get_rng_state()
            self._restore.append(lambda: torch.cuda.set_rng_state(device))

    on_evaluate = on_step_end

    def restored(self) -> bool:
        """Go back to them; False if nothing can be saved with them.

        That is before the end of the first step, and with several processes: only one of them may have the error that
        cut off the step, and the others would not save with it.
        """
        if self.accelerator.num_processes > 1 or not self._restore:
            return False
        for one in self._restore:
            one()
        return True

"""The random states at the end of a step: with them the next step can be repeated, if it is cut off."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
import torch
from transformers import TrainerCallback


class StepEnd(TrainerCallback):
    """Keeps the random states of this process after each step, and after an evaluation that follows it."""

    def __init__(self) -> None:
        self._restore: list[Callable[[], Any]] = []

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

    def restore(self) -> None:
        """Go back to them."""
        for one in self._restore:
            one()

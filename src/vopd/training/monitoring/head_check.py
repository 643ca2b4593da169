"""Checks a student that FSDP or DeepSpeed holds as soon as it is placed, which is when training begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback


class HeadCheck(TrainerCallback):
    """Calls `check` when the student is placed, before training; it may raise."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._check()

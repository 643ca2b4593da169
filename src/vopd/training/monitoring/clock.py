"""How long a step takes: wall time by phase, and processor time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from .metrics import Averages


class StepClock(TrainerCallback):
    """Wall time of the optimizer steps since the last report, split into rollout, scoring and the rest.

    ``update`` is what a step takes beyond rollout and scoring: the student's forward and backward pass and the
    optimizer. Evaluation and checkpoints between steps count for nothing. ``processor`` is the processor time of this
    process in the same steps, all threads together: unlike wall time it does not grow when other programs share the
    cores.
    """

    def __init__(self) -> None:
        self._started: float | None = None
        self._processor_started = 0.0
        self._marks: list[tuple[str, torch.Event, torch.Event]] = []  # of the step that is under way
        self._restart()

    def _restart(self) -> None:
        self._parts = {"rollout": 0.0, "scoring": 0.0}
        self._total = self._processor = self._before_optimizer = 0.0
        self._steps = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A step begins, with its rollout.
        self._started, self._marks = time.perf_counter(), []
        self._processor_started = time.process_time()

    def spend(self, part: str, seconds: float) -> None:
        """Count `seconds` of the current step as `part`."""
        if self._started is not None:
            self._parts[part] = self._parts.get(part, 0.0) + seconds

    @contextmanager
    def spending(self, part: str, device: torch.device | None = None) -> Iterator[None]:
        """Count the time of the with block as `part`, which may be a new name.

        With a `device` the time is measured on that device, from the end of its earlier work to the end of the block's.
        The two moments are recorded as events and read when the step is over, so that nothing waits for the device.
        """
        if device is None or device.type == "cpu":
            started = time.perf_counter()
            yield
            self.spend(part, time.perf_counter() - started)
            return
        begun = _mark(device)
        yield
        if self._started is not None:
            self._marks.append((part, begun, _mark(device)))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._started is not None:
            self._before_optimizer += time.perf_counter() - self._started

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The gradient of this step has been checked, so the device has passed every event.
        for part, begun, ended in self._marks:
            ended.synchronize()
            self.spend(part, begun.elapsed_time(ended) / 1000)
        self._marks = []
        if self._started is not None:
            self._total += time.perf_counter() - self._started
            self._processor += time.process_time() - self._processor_started
            self._steps += 1
        self._started = None

    def report(self, averages: Averages, tokens: float, ranks: int, device: torch.device) -> None:
        """Add seconds per step, and tokens per second of all `ranks`, of which this one sampled `tokens`; reset."""
        if self._steps:
            update = self._total - sum(self._parts.values())
            for part, seconds in (*self._parts.items(), ("update", update), ("processor", self._processor)):
                averages.add_total(f"seconds/{part}", seconds, self._steps, device)
            averages.add_total("step_time", self._before_optimizer, self._steps, device)
            averages.add_total("tokens_per_second", tokens, self._total / ranks, device)
        self._restart()


def _mark(device: torch.device) -> torch.Event:
    event = torch.Event(device, enable_timing=True)
    event.record()
    return event

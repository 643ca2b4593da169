"""The teacher in this process: a forward pass beside the student's, full rows at every token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vopd.estimators.teacher_scores import EVERY_KIND, ScoreKind

from .base import Rollouts, Scored, States


class LocalTeacher:
    """``Teacher`` of a model that accelerate has prepared.

    Args:
        model: the prepared model.
        states: (model, rollouts) -> its states; what the trainer's backend needs around a forward pass.
        offload: keep the model on the host but for the time of a scoring; its head stays until the loss is done.
    """

    gives: frozenset[ScoreKind] = EVERY_KIND

    def __init__(self, model: Any, states: Callable[[Any, Rollouts], States], offload: bool = False) -> None:
        self.model = model
        self._states = states
        self._offload = offload
        if offload:
            model.to("cpu")

    def begin(self, rollouts: Rollouts) -> None:
        """Nothing: its forward pass needs the device that the student computes on."""

    def settle(self, rollouts: Rollouts) -> None:
        """Every row always has scores."""

    def score(self, rollouts: Rollouts, student: States) -> list[Scored]:
        """Full rows of the whole micro-batch."""
        device = student.head.weight.device
        if self._offload:
            self.model.to(device)
        found = self._states(self.model, rollouts)
        if self._offload:
            self.model.to("cpu")
        return [Scored(States(found.hidden.to(device), found.head.map(lambda part: part.to(device))))]

    def metrics(self) -> dict[str, float]:
        """None."""
        return {}

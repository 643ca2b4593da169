"""The teacher in this process: a forward pass beside the student's, full rows at every token."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vopd.estimators.teacher_scores import EVERY_KIND, ScoreKind
from vopd.models import States
from vopd.placement import Placement

from .base import Rollouts, Scored


class InProcess:
    """What every ``Teacher`` in this process has in common: all there is to know, at once, and nothing to count."""

    gives: frozenset[ScoreKind] = EVERY_KIND

    def begin(self, rollouts: Rollouts) -> None:
        """Nothing: its forward pass needs the device that the student computes on."""

    def settle(self, rollouts: Rollouts) -> Tensor | None:
        """Every row always has scores."""
        return None

    def metrics(self) -> dict[str, float]:
        """None."""
        return {}


class LocalTeacher(InProcess):
    """``Teacher`` of a model that ``Placement.place_frozen`` has prepared.

    Args:
        model: the prepared model.
        placement: of the run.
        offload: keep the model on the host but for the time of a scoring; its head stays until the loss is done.
    """

    def __init__(self, model: Any, placement: Placement, offload: bool = False) -> None:
        self.model = model
        self._placement = placement
        self._offload = offload
        if offload:
            model.to("cpu")

    def score(self, rollouts: Rollouts, student: States) -> list[Scored]:
        """Full rows of the whole micro-batch."""
        device = student.head.device
        if self._offload:
            self.model.to(device)
        found = self._placement.frozen_states(self.model, rollouts.sequence)
        if self._offload:
            self.model.to("cpu")
        return [Scored(found.to(device))]

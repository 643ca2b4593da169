"""The teacher in this process: a forward pass beside the student's, full rows at every token."""

from __future__ import annotations

from typing import Any

from vopd.estimators.teacher_scores import EVERY_KIND, ScoreKind
from vopd.models import States
from vopd.placement import Placement

from .base import Rollouts, Scored, Teacher


class InProcess(Teacher):
    """A teacher in this process: it tells all there is to know. Its forward pass needs the student's device, so that
    nothing can begin before."""

    gives: frozenset[ScoreKind] = EVERY_KIND


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

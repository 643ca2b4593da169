"""Rollouts with their prefixes fixed: logits of both models, and the way from there to the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from studies.claims.fixed import Place


@dataclass(frozen=True)
class Context:
    """A rollout of n tokens: the student's logits (n, V) with their graph, the teacher's, and what a gradient is of."""

    logits: Tensor
    teacher_logits: Tensor
    parameters: Sequence[Tensor]
    divisor: float

    def carried(self, gradient: Tensor) -> Tensor:
        """A gradient in the logits, (n, V), as one in the parameters, over the divisor."""
        parts = torch.autograd.grad(self.logits, self.parameters, gradient / self.divisor, retain_graph=True)
        return torch.cat([part.flatten() for part in parts])


def contexts_of(place: Place) -> list[Context]:
    """Every rollout of a place as a context."""
    parameters = [parameter for parameter in place.student.parameters() if parameter.requires_grad]
    divisor = sum(len(rollout.completion_ids) for rollout in place.rollouts) / len(place.rollouts)
    found = []
    for rollout in place.rollouts:
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
        rows = slice(len(rollout.prompt_ids) - 1, ids.shape[1] - 1)
        student = place.student(input_ids=ids).logits[0, rows, : place.vocabulary]
        with torch.no_grad():
            teacher = place.teacher(input_ids=ids).logits[0, rows, : place.vocabulary]
        found.append(Context(student, teacher, parameters, divisor))
    return found

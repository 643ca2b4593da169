"""Several teachers, each for the rows that name it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vopd.estimators.teacher_scores import ScoreKind

from .base import Rollouts, Scored, States, Teacher


class RoutedTeacher:
    """``Teacher`` that hands each row to the one that ``Rollouts.teachers`` names.

    A teacher sees its own rows alone, and one that stands under several names sees the rows of all of them at once.

    Args:
        teachers: by name; their order is what the numbers in ``Rollouts.teachers`` count.
        lockstep: names of teachers whose forward pass gathers shards from every process. They also run where no row is
            theirs, on a dummy row that counts nowhere: otherwise the processes that have rows would wait for ever.
    """

    def __init__(self, teachers: Mapping[str, Teacher], lockstep: frozenset[str] = frozenset()) -> None:
        self.names = list(teachers)
        self.lockstep = lockstep
        by_object: dict[int, tuple[Teacher, list[int]]] = {}
        for place, teacher in enumerate(teachers.values()):
            by_object.setdefault(id(teacher), (teacher, []))[1].append(place)
        self._parts = list(by_object.values())

    @property
    def gives(self) -> frozenset[ScoreKind]:
        """What all of them give: one estimator works for every row."""
        return frozenset.intersection(*(teacher.gives for teacher, _ in self._parts))

    def begin(self, rollouts: Rollouts) -> None:
        """Each begins with its rows."""
        for teacher, places in self._parts:
            rows = _rows_of(rollouts, places)
            if len(rows):
                teacher.begin(_select(rollouts, rows))

    def settle(self, rollouts: Rollouts) -> Tensor | None:
        """Asks every one, also without rows: whether any of them can leave rows out must not depend on the rows."""
        scored = torch.ones(len(rollouts.completion_ids), dtype=torch.bool, device=rollouts.completion_ids.device)
        always = True
        for teacher, places in self._parts:
            rows = _rows_of(rollouts, places)
            found = teacher.settle(_select(rollouts, rows))
            if found is not None:
                always = False
                scored[rows] = found.to(scored.device)
        return None if always else scored

    def score(self, rollouts: Rollouts, student: States) -> Sequence[Scored]:
        """One entry for each name that has rows here, in order, and for those in lockstep."""
        found: list[tuple[int, Scored]] = []
        for teacher, places in self._parts:
            rows = _rows_of(rollouts, places)
            if len(rows) == 0:
                if not self.lockstep.intersection(self.names[place] for place in places):
                    continue
                rows = rows.new_zeros(1)
            states = States(student.hidden[rows.to(student.hidden.device)], student.head)
            for entry in teacher.score(_select(rollouts, rows), states):
                found += [(place, self._own(entry, rows, place, rollouts)) for place in places]
        return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]

    def _own(self, entry: Scored, rows: Tensor, place: int, rollouts: Rollouts) -> Scored:
        """What was said of some rows, spread over the whole micro-batch, masked to those of one name."""
        count = len(rollouts.completion_ids)
        own = (_teachers(rollouts) == place).unsqueeze(-1)
        mask = own if entry.mask is None else own & _spread(entry.mask.bool(), rows, count).to(own.device)
        # The head of full rows is no tensor: it is the same for all of them.
        given = {name: value for name, value in vars(entry.by).items() if isinstance(value, Tensor)}
        spread: dict[str, Any] = {name: _spread(value, rows, count) for name, value in given.items()}
        device = next(iter(spread.values())).device
        return Scored(replace(entry.by, **spread), mask.to(device), self.names[place])

    def metrics(self) -> dict[str, float]:
        """Each one's counts as metric/name; of one with several names under the first."""
        return {
            f"{metric}/{self.names[places[0]]}": count
            for teacher, places in self._parts
            for metric, count in teacher.metrics().items()
        }


def _teachers(rollouts: Rollouts) -> Tensor:
    if rollouts.teachers is None:
        raise ValueError("these rollouts name no teachers")
    return rollouts.teachers


def _rows_of(rollouts: Rollouts, places: list[int]) -> Tensor:
    teachers = _teachers(rollouts)
    return torch.isin(teachers, torch.tensor(places, device=teachers.device)).nonzero().squeeze(-1)


def _select(rollouts: Rollouts, rows: Tensor) -> Rollouts:
    given = {name: value for name, value in vars(rollouts).items() if value is not None}
    return replace(rollouts, **{name: value[rows] for name, value in given.items()})


def _spread(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Values of some rows among `count`, zeros in the others."""
    if len(rows) == count:  # ascending, so they are all of them
        return values
    return values.new_zeros(count, *values.shape[1:]).index_copy_(0, rows.to(values.device), values)

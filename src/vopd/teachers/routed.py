"""Several teachers, each for the rows of the dataset that name it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vopd.estimators.teacher_scores import ScoreKind

from .base import Rollouts, Scored, States, Teacher


class RoutedTeacher:
    """``Teacher`` that routes each row to the teacher that ``Rollouts.teachers`` names.

    A teacher sees only its own rows; one with several names sees the rows of all of them at once.

    Args:
        teachers: teachers by name, in the order of the indices in ``Rollouts.teachers``.
        lockstep: names of teachers whose forward pass gathers shards from every process. They are called even without
            rows of their own: otherwise the processes that have rows would wait forever.
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
        """The kinds of scores that all of them provide, since one estimator must work for every row."""
        return frozenset.intersection(*(teacher.gives for teacher, _ in self._parts))

    def begin(self, rollouts: Rollouts) -> None:
        """Each teacher begins with its own rows; those in lockstep even without any."""
        for teacher, rows, _ in self._called(rollouts):
            teacher.begin(_select(rollouts, rows))

    def settle(self, rollouts: Rollouts) -> Tensor | None:
        """Asks every teacher, even without rows: whether any can leave rows out must not depend on the rows."""
        scored = torch.ones(len(rollouts.completion_ids), dtype=torch.bool)
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
        for teacher, rows, places in self._called(rollouts):
            states = States(_taken(student.hidden, rows), student.head)
            for entry in teacher.score(_select(rollouts, rows), states):
                found += [(place, self._own(entry, rows, place, rollouts)) for place in places]
        return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]

    def _called(self, rollouts: Rollouts) -> Iterator[tuple[Teacher, list[int], list[int]]]:
        """The teachers with rows here and those in lockstep, with their rows and the places of their names."""
        for teacher, places in self._parts:
            rows = _rows_of(rollouts, places)
            if rows or self.lockstep.intersection(self.names[place] for place in places):
                yield teacher, rows, places

    def _own(self, entry: Scored, rows: list[int], place: int, rollouts: Rollouts) -> Scored:
        """Scores of some rows, expanded to the whole micro-batch and masked to the rows of one name."""
        count, own = len(rollouts.completion_ids), _rows_of(rollouts, [place])
        # The head of states is not a tensor: it is the same for all rows.
        given = {name: value for name, value in vars(entry.by).items() if isinstance(value, Tensor)}
        spread: dict[str, Any] = {name: _spread(value, rows, count) for name, value in given.items()}
        device = next(iter(spread.values())).device
        mask = _spread(torch.ones(len(own), 1, dtype=torch.bool, device=device), own, count)
        if entry.mask is not None:
            mask = mask & _spread(entry.mask.bool().to(device), rows, count)
        return Scored(replace(entry.by, **spread), mask, self.names[place])

    def metrics(self) -> dict[str, float]:
        """Each teacher's counts as metric/name; one with several names uses the first."""
        return {
            f"{metric}/{self.names[places[0]]}": count
            for teacher, places in self._parts
            for metric, count in teacher.metrics().items()
        }


def _teachers(rollouts: Rollouts) -> Tensor:
    if rollouts.teachers is None:
        raise ValueError("these rollouts name no teachers")
    return rollouts.teachers


def _rows_of(rollouts: Rollouts, places: list[int]) -> list[int]:
    """Rows of the teachers at these indices, computed on the host so that nothing waits for the device."""
    return [row for row, place in enumerate(_teachers(rollouts).tolist()) if place in places]


def _select(rollouts: Rollouts, rows: list[int]) -> Rollouts:
    taken: dict[str, Any] = {
        name: _taken(value, rows) for name, value in vars(rollouts).items() if isinstance(value, Tensor)
    }
    return replace(rollouts, **taken)


def _taken(values: Tensor, rows: list[int]) -> Tensor:
    return torch.stack([values[row] for row in rows]) if rows else values[:0]


def _spread(values: Tensor, rows: list[int], count: int) -> Tensor:
    """Expand values of some rows to `count` rows, with zeros in the others."""
    if len(rows) == count:  # all of them, in ascending order
        return values
    spread = values.new_zeros(count, *values.shape[1:])
    for place, row in enumerate(rows):
        spread[row].copy_(values[place])
    return spread

"""What a teacher is to training: a thing that scores completions, and says beforehand how much it can tell of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vopd.estimators.teacher_scores import ScoreKind, TopKScores
from vopd.models import States


@dataclass(frozen=True)
class Texts:
    """Prompts padded on the left and completions padded on the right, as ids; (B, P) and (B, T), masks 0 on padding."""

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor

    @property
    def sequence(self) -> tuple[Tensor, Tensor, int]:
        """Ids and attention mask of prompts with completions, and how many of the last positions predict a token.

        A completion's positions are counted from its end, so that prompts of any length line up.
        """
        ids = torch.cat([self.prompt_ids, self.completion_ids], dim=1)
        return ids, torch.cat([self.prompt_mask, self.completion_mask], dim=1), self.completion_ids.size(1)

    def unpadded(self) -> list[tuple[list[int], list[int]]]:
        """The ids of each prompt, and of its completion."""
        prompts = _without_padding(self.prompt_ids, self.prompt_mask)
        return list(zip(prompts, _without_padding(self.completion_ids, self.completion_mask), strict=True))


def _without_padding(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[real.bool()].tolist() for row, real in zip(ids.cpu(), mask.cpu(), strict=True)]


@dataclass(frozen=True)
class Rollouts(Texts):
    """Completions to score. The prompts are those that the teacher reads.

    Attributes:
        loss_mask: (B, T), 1 where the student sampled the token: what needs a score.
        rows: (B,), a number of each row by which the teacher knows it again; None where nothing was begun before.
        teachers: (B,), the place of each row's teacher among several; None with one. Both are on the host, which reads
            them in every micro-batch.
    """

    loss_mask: Tensor
    rows: Tensor | None = None
    teachers: Tensor | None = None


@dataclass(frozen=True)
class Scored:
    """What one teacher says of a micro-batch, in the form that the loss takes.

    Attributes:
        by: full rows, or scores of some ids. Of the whole batch, whatever ``mask`` covers.
        mask: (B, T) or (B, 1), 1 on the tokens that are this teacher's; None for all of them.
        name: of the teacher, for its own metrics; None for the only one.
    """

    by: States | TopKScores
    mask: Tensor | None = None
    name: str | None = None


class Teacher(Protocol):
    """Scores completions. Training calls ``begin`` with every generated batch, ``settle`` before the first loss of it
    and ``score`` with each of its micro-batches, whose rows may come in another order. A subclass that leaves them out
    begins nothing, always has scores, and counts nothing."""

    @property
    def gives(self) -> frozenset[ScoreKind]:
        """What it can tell; compared with what the estimator needs before anything is trained."""
        ...

    def begin(self, rollouts: Rollouts) -> None:
        """A batch was generated: whatever can be done while the student computes may start. Must not wait."""
        return None

    def settle(self, rollouts: Rollouts) -> Tensor | None:
        """Which rows have scores, (B,) booleans, known once this returns; None where every row always has.

        Called with all rows that share a normaliser, on every process, also with none. Those without scores count
        nowhere. Whether the answer is None must not depend on the rows: the processes act on it together.
        """
        return None

    def score(self, rollouts: Rollouts, student: States) -> Sequence[Scored]:
        """Scores of a micro-batch, on the device of the student's head. Each token in the masks of at most one entry.

        Args:
            rollouts: the rows.
            student: the student's states, from which a teacher may choose the ids that it scores; detach them.

        Raises:
            TeacherServerError: a server does not answer, or not with what was asked.
        """
        ...

    def metrics(self) -> dict[str, float]:
        """Counts of this process since the last call, by name: summed over processes and logged."""
        return {}

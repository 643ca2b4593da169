"""The interface between training and teachers, which score completions and declare which scores they provide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from vopd.estimators.teacher_scores import ScoreKind, TopKScores
from vopd.models import States

from .texts import Texts


@dataclass(frozen=True)
class Rollouts(Texts):
    """Completions to score, with the prompts that the teacher reads.

    Attributes:
        loss_mask: (B, T), 1 on tokens that the student sampled and that need a score.
        rows: (B,), a number that identifies each row to the teacher; None if ``begin`` was not called for them.
        teachers: (B,), index of each row's teacher among several; None with one. ``rows`` and ``teachers`` are on the
            host, which reads them in every micro-batch.
    """

    loss_mask: Tensor
    rows: Tensor | None = None
    teachers: Tensor | None = None


@dataclass(frozen=True)
class Scored:
    """One teacher's scores of a micro-batch, in the form that the loss takes.

    Attributes:
        by: the teacher's states (its full distribution), or scores of some ids. They cover the whole batch, whatever
            ``mask`` is.
        mask: (B, T) or (B, 1), 1 on the tokens that this teacher scores; None for all tokens.
        name: name of the teacher, for its own metrics; None if it is the only one.
    """

    by: States | TopKScores
    mask: Tensor | None = None
    name: str | None = None


class Teacher(Protocol):
    """Scores completions.

    Training calls ``begin`` with every generated batch, ``settle`` before the first loss of that batch, and ``score``
    with each of its micro-batches, whose rows may come in another order. By default ``begin`` does nothing, every row
    has scores, and there are no metrics.
    """

    @property
    def gives(self) -> frozenset[ScoreKind]:
        """The kinds of scores it provides; checked before training against what the estimator needs."""
        ...

    def begin(self, rollouts: Rollouts) -> None:
        """Start work on a generated batch: request its scores from a server, without waiting for them, or compute them
        here. Called under the autocast of the training."""
        return None

    def settle(self, rollouts: Rollouts) -> Tensor | None:
        """Which rows have scores, (B,) booleans; None if every row always has. Waits until this is known.

        Called with all rows that share a normalizer, on every process, even with no rows. Rows without scores are left
        out of the loss. Whether the result is None must not depend on the rows, because all processes act on it
        together.
        """
        return None

    def score(self, rollouts: Rollouts, student: States) -> Sequence[Scored]:
        """Scores of a micro-batch, on the device of the student's head. A token is in the mask of at most one entry.

        Args:
            rollouts: the rows.
            student: the student's states, from which a teacher may choose the ids to score; detach them.

        Raises:
            TeacherServerError: a server does not answer, or not with the scores that were requested.
        """
        ...

    def metrics(self) -> dict[str, float]:
        """Counts of this process since the last call, by name; they are summed over processes and logged."""
        return {}

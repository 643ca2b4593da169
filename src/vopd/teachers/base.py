"""What a teacher is to training: a thing that scores completions, and says beforehand how much it can tell of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from vopd.estimators.teacher_scores import ScoreKind, TopKScores
from vopd.kernels import Head


@dataclass(frozen=True)
class Rollouts:
    """Completions to score, as ids; (B, P) and (B, T). The prompts are those that the teacher reads.

    Attributes:
        prompt_ids, prompt_mask: padded on the left, the mask 0 on the padding.
        completion_ids, completion_mask: padded on the right.
        loss_mask: (B, T), 1 where the student sampled the token: what needs a score.
        rows: (B,), a number of each row by which the teacher knows it again; None where nothing was begun before.
        teachers: (B,), the place of each row's teacher among several; None with one.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    loss_mask: Tensor
    rows: Tensor | None = None
    teachers: Tensor | None = None


@dataclass(frozen=True)
class States:
    """Last hidden states and output head of one model: its full rows of logits, unformed.

    Attributes:
        hidden: (B, T, H); the state at t predicts ``completion_ids[:, t]``.
        head: weight (V, H), and bias, scale and soft cap of the logits where there are any.
    """

    hidden: Tensor
    head: Head


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
    and ``score`` with each of its micro-batches, whose rows may come in another order."""

    @property
    def gives(self) -> frozenset[ScoreKind]:
        """What it can tell; compared with what the estimator needs before anything is trained."""
        ...

    def begin(self, rollouts: Rollouts) -> None:
        """A batch was generated: whatever can be done while the student computes may start. Must not wait."""
        ...

    def settle(self, rollouts: Rollouts) -> Tensor | None:
        """Which rows have scores, (B,) booleans, known once this returns; None where every row always has.

        Called with all rows that share a normaliser, on every process, also with none. Those without scores count
        nowhere. Whether the answer is None must not depend on the rows: the processes act on it together.
        """
        ...

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
        ...

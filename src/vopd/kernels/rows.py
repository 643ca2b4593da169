"""What the estimators see: per-token statistics of one pass over both models' logits.

A row is one completion token. Some tokens of the vocabulary are kept one by one (the support columns, whose first is
always the student's most likely token, "top"); the others enter through sums. Differences are d = z_s - z_t, centred
on the top token: d' = d - d_top, so that the log-normalisers of both models cancel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..functional import Moments

SupportKind = Literal["top", "student_top_k", "teacher_top_k"]


@dataclass(frozen=True)
class Needs:
    """The statistics an estimator asks for.

    Attributes:
        support: which tokens to keep one by one.
        order: highest power of the student's probability in the sums over the other tokens: 0 for none beyond
            their mass, 1 for sum p d', 2 for sum p^2 and sum p^2 d' as well.
        full_teacher: False if the teacher is needed at the support and the sampled token only, not normalised.
    """

    support: SupportKind = "top"
    order: Literal[0, 1, 2] = 0
    full_teacher: bool = True


@dataclass(frozen=True)
class Rows:
    """Statistics of N rows; detached; float32 or wider. None marks what the caller's teacher or ``Needs`` leave out.

    Attributes:
        sampled_ids: y, (N,).
        student_logprobs: log p(y), (N,).
        teacher_logprobs: log q(y), (N,).
        sampled_difference: d'_y, (N,).
        top_reward: r_top = log q - log p at the top token, (N,).
        support_ids: (N, K), column 0 is the top token.
        in_support: (N, K) booleans: whether a column belongs to the estimator's support, each token once.
        support_logprobs: log p there, (N, K).
        support_difference: d' there, (N, K).
        support_teacher_logprobs: log q there, (N, K).
        other_prob, other_square_prob: sums of p, p^2 over tokens in no column, (N,).
        other_difference, other_square_difference: sums of p d', p^2 d' over the same, (N,).
        other_difference_square, other_square_difference_square: sums of p d'^2, p^2 d'^2, (N,), for diagnostics.
        entropy: of the student, (N,), for diagnostics.
        importance: weight of the sampled terms, (N,), 1 on-policy.
    """

    sampled_ids: Tensor
    student_logprobs: Tensor
    support_ids: Tensor
    in_support: Tensor
    support_logprobs: Tensor
    importance: Tensor
    other_prob: Tensor
    other_square_prob: Tensor | None = None
    teacher_logprobs: Tensor | None = None
    sampled_difference: Tensor | None = None
    top_reward: Tensor | None = None
    support_difference: Tensor | None = None
    support_teacher_logprobs: Tensor | None = None
    other_difference: Tensor | None = None
    other_square_difference: Tensor | None = None
    other_difference_square: Tensor | None = None
    other_square_difference_square: Tensor | None = None
    entropy: Tensor | None = None

    @property
    def rewards(self) -> Tensor | None:
        """r_y = log q(y) - log p(y), (N,)."""
        return None if self.teacher_logprobs is None else self.teacher_logprobs - self.student_logprobs

    @property
    def expected_difference(self) -> Tensor:
        """E_p[d'], (N,). Needs order 1."""
        probs, difference = self._distinct()
        return (probs * difference).sum(-1) + _known(self.other_difference)

    def moments(self) -> Moments:
        """The moments that the full-vocabulary baselines are functions of. Needs order 2 for the squared sums."""
        probs, difference = self._distinct()
        rest_probs = probs[:, 1:]
        rest_difference = difference[:, 1:]
        square = rest_probs.square()
        squares: dict[str, Tensor] = {}
        if self.other_difference_square is not None:
            squares["reward_square"] = (rest_probs * rest_difference.square()).sum(-1) + self.other_difference_square
            squares["square_reward_square"] = (square * rest_difference.square()).sum(-1) + _known(
                self.other_square_difference_square
            )
        return Moments(
            top_prob=probs[:, 0],
            rest_prob=rest_probs.sum(-1) + self.other_prob,
            rest_square_prob=square.sum(-1) + _known(self.other_square_prob),
            reward=-self.expected_difference,
            square_reward=-((square * rest_difference).sum(-1) + _known(self.other_square_difference)),
            top_reward=self.top_reward,
            **squares,
        )

    def _distinct(self) -> tuple[Tensor, Tensor]:
        """(p, d') of the columns, each token counted once: the top one in column 0 even where it is not in S."""
        counted = self.in_support.clone()
        counted[:, 0] = True
        difference = _known(self.support_difference)
        return self.support_logprobs.exp() * counted, difference.masked_fill(~counted, 0)


@dataclass(frozen=True)
class GradientForm:
    """The gradient of a token loss in the student's logits: a p + b p d' + values at ids.

    Attributes:
        a: (N,).
        b: (N,), or None for 0.
        ids: (N, J), may repeat: values add up.
        values: (N, J).
    """

    a: Tensor
    ids: Tensor
    values: Tensor
    b: Tensor | None = None


@dataclass(frozen=True)
class Estimate:
    """What an estimator returns for N rows: the token losses, their gradient form, and what it used."""

    loss: Tensor
    form: GradientForm
    rewards: Tensor | None = None
    baseline: Tensor | None = None
    advantages: Tensor | None = None
    reverse_kl: Tensor | None = None


def _known(value: Tensor | None) -> Tensor:
    if value is None:
        raise AssertionError("an estimator read a statistic that its Needs do not name")
    return value

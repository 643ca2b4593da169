"""What an estimator is, and what a caller may add to any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, cat

from vopd.functional import policy_gradient_loss
from vopd.kernels import Estimate, Needs, Rows


@dataclass(frozen=True)
class Estimator:
    """A named way to turn both models' scores of a sampled token into a gradient.

    Attributes:
        name: how users call it.
        description: one line for tables and help texts.
        support: what it needs of the teacher: the ``sampled`` token's score, scores of a ``top_k``, or ``full`` rows.
        unbiased: whether its expected gradient is that of the exact reverse KL.
        needs_top_k: whether ``top_k`` must be given.
        teacher_scores: whether a plain server's scores (``TopKScores``) are enough.
        needs: the statistics it reads from the kernels.
        estimate: statistics of N rows -> token losses and gradient form.
    """

    name: str
    description: str
    support: Literal["sampled", "top_k", "full"]
    unbiased: bool
    needs: Needs
    estimate: Callable[[Rows], Estimate]
    needs_top_k: bool = False
    teacher_scores: bool = False


def with_extra_advantages(rows: Rows, estimate: Estimate) -> Estimate:
    """Adds the plain policy-gradient term -w e log p_y of the caller's advantages e: w e more in a, -w e more at y.

    Where the estimator samples, that is A = r_y - b + e. Where it sums tokens exactly (Rao-Blackwell's support, the
    exact objectives) there is no sampled term to add to: e is known of the sampled token alone, so it stays sampled.
    ``advantages`` stays r_y - b, so that the two parts are told apart.
    """
    if rows.extra_advantages is None:
        return estimate
    weighted = rows.extra_advantages.to(rows.importance) * rows.importance
    form = replace(
        estimate.form,
        a=estimate.form.a + weighted,
        ids=append(estimate.form.ids, rows.sampled_ids),
        values=append(estimate.form.values, -weighted),
    )
    return replace(estimate, loss=estimate.loss + policy_gradient_loss(rows.student_logprobs, weighted), form=form)


def append(columns: Tensor, column: Tensor) -> Tensor:
    """One more column, (N, J + 1)."""
    return cat([columns, column.unsqueeze(-1)], dim=-1)

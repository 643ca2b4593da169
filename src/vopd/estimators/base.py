"""What an estimator is, and what a caller may add to any of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from torch import Tensor, cat

from vopd.errors import ConfigurationError, check_known
from vopd.functional import policy_gradient_loss
from vopd.kernels import Estimate, Needs, Rows

from .teacher_scores import ScoreKind

if TYPE_CHECKING:
    from jaxtyping import Shaped


Support = Literal["sampled", "top_k", "full"]


@dataclass(frozen=True)
class Estimator:
    """A named way to turn both models' scores of a sampled token into a gradient.

    All that the rest of the package knows of an estimator are these fields, so one of your own is used wherever a name
    of the catalogue is: pass the object, or name it as ``module:NAME`` in a file and on the command line.

    Attributes:
        name: how tables and folders call it: letters, digits, and ``. _ -``.
        description: one line for tables and help texts.
        support: what it needs of the teacher: the ``sampled`` token's score, scores of a ``top_k``, or ``full`` rows.
        needs: the statistics it reads from the kernels.
        estimate: statistics of N rows -> token losses and gradient form.
        unbiased: whether its expected gradient is that of the exact reverse KL.
        samples: whether its gradient depends on the token drawn. If so, tokens must be drawn from the student's whole
            distribution, and importance weights apply.
        colour: in every figure, as ``#rrggbb``.
        formula: the baseline b, or the loss, for the table of estimators in the documents.

    Raises:
        ConfigurationError: the name cannot be part of a folder's name, the colour is none, or the needs are more than
            the support.
    """

    name: str
    description: str
    support: Support
    needs: Needs
    estimate: Callable[[Rows], Estimate]
    unbiased: bool = True
    samples: bool = True
    colour: str = "#999999"
    formula: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ConfigurationError(
                f"the name of an estimator is made of letters, digits, '.', '_' and '-', not {self.name!r}"
            )
        if not re.fullmatch("#[0-9a-fA-F]{6}", self.colour):
            raise ConfigurationError(f"the colour of estimator {self.name!r} must be like #0072b2, not {self.colour!r}")
        if not isinstance(self.needs, Needs) or not callable(self.estimate):
            raise ConfigurationError(f"estimator {self.name!r}: needs must be a Needs(...), and estimate a function")
        supports = get_args(Support)
        check_known(f"support of estimator '{self.name}'", self.support, supports)
        if supports.index(self.support) < supports.index(self._least_support):
            raise ConfigurationError(
                f"estimator {self.name!r} reads more of the teacher than support={self.support!r} promises: "
                f"{self.needs} takes support={self._least_support!r}"
            )

    @property
    def _least_support(self) -> Support:
        """What the teacher must give for these needs. Outside its top k, order 2 asks for the student's p^2 alone."""
        if self.needs.order == 1 or (self.needs.order == 2 and self.needs.support != "teacher_top_k"):
            return "full"
        return "sampled" if self.needs.support == "top" else "top_k"

    @property
    def needs_top_k(self) -> bool:
        """Whether ``top_k`` must be given."""
        return self.needs.support != "top"

    @property
    def need(self) -> ScoreKind:
        """What a teacher must be able to give."""
        if self.support == "top_k":
            return "chosen" if self.needs.support == "student_top_k" else "top_k"
        return self.support

    @property
    def teacher_scores(self) -> bool:
        """Whether a plain server's scores (``TopKScores``) are enough."""
        return self.need in ("sampled", "top_k")


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


def append(columns: Shaped[Tensor, "N J"], column: Shaped[Tensor, " N"]) -> Shaped[Tensor, "N J+1"]:
    """One more column, (N, J + 1)."""
    return cat([columns, column.unsqueeze(-1)], dim=-1)

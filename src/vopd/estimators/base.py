"""The estimator interface, and extra advantages, which work with every estimator."""

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
    """Turns the student's and the teacher's scores of a token into a loss and its gradient.

    The package uses estimators only through these fields, so a custom estimator works wherever a built-in name does:
    pass the object in Python, or name it as ``module:NAME`` in a configuration file and on the command line.

    Attributes:
        name: used in tables and folder names; letters, digits, and ``. _ -``.
        description: one line for tables and help texts.
        support: what the teacher must provide: the score of the ``sampled`` token, scores of a ``top_k``, or ``full``
            rows.
        needs: the statistics that ``estimate`` reads.
        estimate: function from the statistics of N tokens to their losses and gradient form.
        unbiased: whether the expected gradient equals that of the exact reverse KL.
        samples: whether the gradient depends on the sampled token. If it does, tokens must be sampled from the
            student's full distribution, and importance weights apply.
        colour: colour in figures, as ``#rrggbb``.
        formula: the baseline b, or the loss, for the table of estimators in the documents.

    Raises:
        ConfigurationError: the name is not valid in a folder name, the colour is not valid, or ``needs`` exceeds
            ``support``.
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
                f"an estimator name may contain letters, digits, '.', '_' and '-' only, got {self.name!r}"
            )
        if not re.fullmatch("#[0-9a-fA-F]{6}", self.colour):
            raise ConfigurationError(f"the colour of estimator {self.name!r} must be like #0072b2, got {self.colour!r}")
        if not isinstance(self.needs, Needs) or not callable(self.estimate):
            raise ConfigurationError(f"estimator {self.name!r}: needs must be a Needs(...) and estimate a function")
        supports = get_args(Support)
        check_known(f"support of estimator '{self.name}'", self.support, supports)
        if supports.index(self.support) < supports.index(self._least_support):
            raise ConfigurationError(
                f"estimator {self.name!r} needs more from the teacher than support={self.support!r} allows: "
                f"{self.needs} requires support={self._least_support!r}"
            )

    @property
    def _least_support(self) -> Support:
        """What the teacher must provide for these needs. Outside its top k, order 2 needs only the student's p^2."""
        if self.needs.order == 1 or (self.needs.order == 2 and self.needs.support != "teacher_top_k"):
            return "full"
        return "sampled" if self.needs.support == "top" else "top_k"

    @property
    def needs_top_k(self) -> bool:
        """Whether the estimator takes ``top_k``."""
        return self.needs.support != "top"

    @property
    def need(self) -> ScoreKind:
        """The kind of scores that the teacher must provide."""
        if self.support == "top_k":
            return "chosen" if self.needs.support == "student_top_k" else "top_k"
        return self.support

    @property
    def teacher_scores(self) -> bool:
        """Whether a server's scores (``TopKScores``) are enough."""
        return self.need in ("sampled", "top_k")


def with_extra_advantages(rows: Rows, estimate: Estimate) -> Estimate:
    """Add the policy-gradient term -w e log p_y of the caller's advantages e: + w e in a, - w e at y.

    For sampled tokens this makes the advantage A = r_y - b + e. Where an estimator sums tokens exactly (the support of
    Rao-Blackwell, the exact objectives), the term is still sampled, because e is known for the sampled token only.
    ``advantages`` stays r_y - b, so both parts can be reported separately.
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
    """Append a column, giving (N, J + 1)."""
    return cat([columns, column.unsqueeze(-1)], dim=-1)

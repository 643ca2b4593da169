"""The one answer to "Which estimator should I use?": README, documents and ``vopd variance`` take it from here."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Estimator
from .exact import FULL_RKL
from .policy_gradient import VOPD, VOPD_OPTIMAL
from .rao_blackwell import RAO_BLACKWELL_TEACHER_TOP_K


@dataclass(frozen=True)
class Advice:
    """What to use in one situation.

    Attributes:
        given: the situation.
        estimator: to use.
        why: its advantage there.
        unless: a condition under which ``instead`` is better, and why; empty without one.
        instead: the estimator under that condition.
    """

    given: str
    estimator: Estimator
    why: str
    unless: str = ""
    instead: Estimator | None = None


WITH_FULL_ROWS = Advice(
    given="the teacher's full distribution (teacher in the training process)",
    estimator=FULL_RKL,
    why="no sampling noise",
    unless="where rewards or importance weights need a policy gradient: least variance",
    instead=VOPD_OPTIMAL,
)
WITH_TOP_K = Advice(
    given="a server that returns its top k",
    estimator=RAO_BLACKWELL_TEACHER_TOP_K,
    why="the top k is summed exactly",
)
TO_REPRODUCE = Advice(
    given="you want to reproduce the paper",
    estimator=VOPD,
    why="the paper's method (and the default)",
)
ADVICE = (WITH_FULL_ROWS, WITH_TOP_K, TO_REPRODUCE)
"""In the order in which a reader should stop at the first row that holds."""

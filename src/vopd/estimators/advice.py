"""The one answer to "Which estimator should I use?": README, documents and ``vopd variance`` take it from here."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Estimator
from .exact import FULL_RKL
from .policy_gradient import VOPD, VOPD_OPTIMAL
from .rao_blackwell import RAO_BLACKWELL_TEACHER_TOP_K


@dataclass(frozen=True)
class Advice:
    """What to use in one situation: its description, the estimator, and the estimator's advantage there."""

    given: str
    estimator: Estimator
    why: str


@dataclass(frozen=True)
class AdviceUnless(Advice):
    """The same, with the estimator to use ``instead`` under the condition ``unless``, and its advantage."""

    unless: str
    instead: Estimator
    why_instead: str


WITH_FULL_ROWS = AdviceUnless(
    given="the teacher's full distribution (in the training process, or from a server of hidden states)",
    estimator=FULL_RKL,
    why="no sampling noise",
    unless="when rewards or importance weights need a policy gradient",
    instead=VOPD_OPTIMAL,
    why_instead="least variance",
)
WITH_TOP_K = Advice(
    given="a server of scores (its top k)",
    estimator=RAO_BLACKWELL_TEACHER_TOP_K,
    why="the top k is summed exactly",
)
TO_REPRODUCE = Advice(
    given="you want to reproduce the paper",
    estimator=VOPD,
    why="the paper's method",
)
ADVICE = (WITH_FULL_ROWS, WITH_TOP_K, TO_REPRODUCE)
"""In the order in which a reader should stop at the first row that holds."""

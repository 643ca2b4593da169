"""Grading, benchmarks and the evaluation runner.

Names are imported on first use: the worker processes of the grader must start without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vopd.statistics import avg_at_k as avg_at_k
    from vopd.statistics import pass_at_k as pass_at_k

    from .grading.grade import Grade as Grade
    from .grading.grade import grade as grade
    from .grading.grade import grade_many as grade_many
    from .results import compare_results as compare_results
    from .results import load_results as load_results
    from .runner import evaluate as evaluate
    from .scores import maj_at_k as maj_at_k

_HOMES = {
    "Grade": "vopd.evaluation.grading.grade",
    "avg_at_k": "vopd.statistics",
    "compare_results": "vopd.evaluation.results",
    "evaluate": "vopd.evaluation.runner",
    "grade": "vopd.evaluation.grading.grade",
    "grade_many": "vopd.evaluation.grading.grade",
    "load_results": "vopd.evaluation.results",
    "maj_at_k": "vopd.evaluation.scores",
    "pass_at_k": "vopd.statistics",
}

__all__ = [
    "Grade",
    "avg_at_k",
    "compare_results",
    "evaluate",
    "grade",
    "grade_many",
    "load_results",
    "maj_at_k",
    "pass_at_k",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'vopd.evaluation' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

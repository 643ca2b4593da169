"""Grading, benchmarks and the evaluation runner.

Names are imported on first use: the worker processes of the grader must start without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vopd.evaluation.grading import Grade as Grade
    from vopd.evaluation.grading import grade as grade
    from vopd.evaluation.grading import grade_many as grade_many
    from vopd.evaluation.metrics import maj_at_k as maj_at_k
    from vopd.evaluation.results import compare_results as compare_results
    from vopd.evaluation.results import load_results as load_results
    from vopd.evaluation.runner import evaluate as evaluate
    from vopd.statistics import avg_at_k as avg_at_k
    from vopd.statistics import pass_at_k as pass_at_k

_HOMES = {
    "Grade": "vopd.evaluation.grading",
    "avg_at_k": "vopd.statistics",
    "compare_results": "vopd.evaluation.results",
    "evaluate": "vopd.evaluation.runner",
    "grade": "vopd.evaluation.grading",
    "grade_many": "vopd.evaluation.grading",
    "load_results": "vopd.evaluation.results",
    "maj_at_k": "vopd.evaluation.metrics",
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

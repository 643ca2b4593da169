"""Grading, benchmarks and the evaluation runner.

Everything except grading is imported on first use: the grader's worker processes must start without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vopd.lazy import lazy_names

from .grading import Grade as Grade
from .grading import grade as grade
from .grading import grade_many as grade_many

if TYPE_CHECKING:
    from vopd.statistics import avg_at_k as avg_at_k
    from vopd.statistics import pass_at_k as pass_at_k

    from .results import compare_results as compare_results
    from .results import load_results as load_results
    from .runner import evaluate as evaluate
    from .scores import maj_at_k as maj_at_k

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "vopd.evaluation.results": ("compare_results", "load_results"),
        "vopd.evaluation.runner": ("evaluate",),
        "vopd.evaluation.scores": ("maj_at_k",),
        "vopd.statistics": ("avg_at_k", "pass_at_k"),
    },
    "Grade",
    "grade",
    "grade_many",
)

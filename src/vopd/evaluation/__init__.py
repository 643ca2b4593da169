"""Grading, benchmarks and the evaluation runner.

All but grading is imported on first use: the worker processes of the grader must start without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .grading import Grade, grade, grade_many

if TYPE_CHECKING:
    from vopd.statistics import avg_at_k, pass_at_k

    from .results import compare_results, load_results
    from .runner import evaluate
    from .scores import maj_at_k

_HOMES = {
    "vopd.evaluation.results": ("compare_results", "load_results"),
    "vopd.evaluation.runner": ("evaluate",),
    "vopd.evaluation.scores": ("maj_at_k",),
    "vopd.statistics": ("avg_at_k", "pass_at_k"),
}
__all__ = [
    "Grade", "avg_at_k", "compare_results", "evaluate", "grade", "grade_many", "load_results", "maj_at_k", "pass_at_k",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'vopd.evaluation' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

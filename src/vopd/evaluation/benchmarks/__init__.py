"""Benchmarks: where their questions are, how their rows are read, and how the questions are asked."""

from .definitions import DEFINITIONS, Benchmark, Protocol, load_benchmark
from .fields import TASK, Question
from .kinds import check_kind, grade_by, own_grader
from .overlap import contamination, training_texts, warn_of_overlaps

__all__ = [
    "DEFINITIONS",
    "TASK",
    "Benchmark",
    "Protocol",
    "Question",
    "check_kind",
    "contamination",
    "grade_by",
    "load_benchmark",
    "own_grader",
    "training_texts",
    "warn_of_overlaps",
]

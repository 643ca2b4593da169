"""Benchmarks: where their questions are, how their rows are read, and how the questions are asked."""

from .definitions import DEFINITIONS, Benchmark, Protocol, load_benchmark
from .fields import Question
from .overlap import contamination, training_texts, warn_of_overlaps

__all__ = [
    "DEFINITIONS",
    "Benchmark",
    "Protocol",
    "Question",
    "contamination",
    "load_benchmark",
    "training_texts",
    "warn_of_overlaps",
]

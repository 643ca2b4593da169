"""Sets of questions with known answers: where they are, how their rows are read, how they are asked."""

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

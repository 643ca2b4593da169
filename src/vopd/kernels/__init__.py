"""Statistics and the gradient form fused with the output heads. Nothing here knows an estimator's name."""

from .chunked import Result, chunk_rows, run_chunks
from .rows import Batch, Estimate, GradientForm, Needs, Rows
from .sources import DenseLogits, LinearHeads

__all__ = [
    "Batch",
    "DenseLogits",
    "Estimate",
    "GradientForm",
    "LinearHeads",
    "Needs",
    "Result",
    "Rows",
    "chunk_rows",
    "run_chunks",
]

"""Per-token statistics and gradients, fused with the output heads. Nothing here depends on a particular estimator."""

from .backends import BACKENDS, backend_name, choose_pass
from .chunked import chunk_rows, run_chunks
from .heads import Head
from .logits import DenseLogits, LinearHeads
from .output import DistillationOutput, Variance
from .rows import Batch, Estimate, GradientForm, Needs, Rows
from .torch_rows import TorchPass

__all__ = [
    "BACKENDS",
    "Batch",
    "DenseLogits",
    "DistillationOutput",
    "Estimate",
    "GradientForm",
    "Head",
    "LinearHeads",
    "Needs",
    "Rows",
    "TorchPass",
    "Variance",
    "backend_name",
    "choose_pass",
    "chunk_rows",
    "run_chunks",
]

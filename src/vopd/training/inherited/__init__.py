"""Options that a configuration inherits from TRL and transformers, sorted once."""

from .elsewhere import elsewhere
from .rules import (
    check_evaluated,
    check_inherited,
    check_optimizer,
    complete_best,
    only_in_python,
    own_errors,
    read_mappings,
)
from .table import FOLLOWING, INHERITED, OF_SOME_VERSIONS, TOP_K, Range, Refused, Works

__all__ = [
    "FOLLOWING", "INHERITED", "OF_SOME_VERSIONS", "TOP_K", "Range", "Refused", "Works",
    "check_evaluated", "check_inherited", "check_optimizer", "complete_best", "elsewhere", "only_in_python",
    "own_errors", "read_mappings",
]  # fmt: skip

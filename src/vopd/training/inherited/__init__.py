"""Options that a configuration inherits from TRL and transformers, sorted once."""

from .elsewhere import elsewhere
from .rules import check_command, check_evaluated, check_inherited, check_optimizer, complete_best, own_errors
from .table import INHERITED, OF_SOME_VERSIONS, TOP_K, Range, Refused, Works

__all__ = [
    "INHERITED", "OF_SOME_VERSIONS", "TOP_K", "Range", "Refused", "Works",
    "check_command", "check_evaluated", "check_inherited", "check_optimizer", "complete_best", "elsewhere",
    "own_errors",
]  # fmt: skip

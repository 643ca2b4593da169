"""Options that a configuration inherits from TRL and transformers, sorted once."""

from .elsewhere import elsewhere
from .rules import check_evaluated, check_inherited, check_optimizer, own_errors, refused_by_command
from .table import INHERITED, OF_SOME_VERSIONS, TOP_K, Range, Refused, Works

__all__ = [
    "INHERITED", "OF_SOME_VERSIONS", "TOP_K", "Range", "Refused", "Works",
    "check_evaluated", "check_inherited", "check_optimizer", "elsewhere", "own_errors", "refused_by_command",
]  # fmt: skip

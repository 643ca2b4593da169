"""Training: the configuration, the trainer on TRL, and what a run leaves behind. No formula lives here."""

# First, for it names the extra that is missing where TRL is.
from . import trl as trl

# isort: split
from .config import VOPDConfig
from .trainer import VOPDTrainer

__all__ = ["VOPDConfig", "VOPDTrainer"]

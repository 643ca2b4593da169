"""Training: the configuration, the trainer on TRL, and what a run leaves behind. No formula lives here."""

from .config import VOPDConfig
from .trainer import VOPDTrainer

__all__ = ["VOPDConfig", "VOPDTrainer"]

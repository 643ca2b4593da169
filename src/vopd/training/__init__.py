"""Training: the configuration, the trainer on TRL, and what a run leaves behind. No formula lives here."""

from vopd.errors import require

require("trl", "train")  # first of all: where it is missing, its extra is named

# isort: split
from .config import VOPDConfig  # noqa: E402
from .trainer import VOPDTrainer  # noqa: E402

__all__ = ["VOPDConfig", "VOPDTrainer"]

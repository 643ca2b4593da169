"""Training: the configuration, the trainer on top of TRL, and the files a run writes. No formula lives here."""

from vopd.errors import require

require("trl", "train")  # before anything imports it, so that the error names the missing extra

# isort: split
from .config import VOPDConfig  # noqa: E402
from .trainer import VOPDTrainer  # noqa: E402

__all__ = ["VOPDConfig", "VOPDTrainer"]

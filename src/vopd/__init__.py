"""vopd: stable on-policy distillation of language models.

`import vopd` loads nothing heavy: every name below is imported on first use, so the command line answers at
once and the losses need no more than torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vopd.estimators import ESTIMATORS as ESTIMATORS
    from vopd.estimators import TopKScores as TopKScores
    from vopd.estimators import distillation_loss as distillation_loss
    from vopd.estimators import linear_distillation_loss as linear_distillation_loss
    from vopd.training import VOPDConfig as VOPDConfig
    from vopd.training import VOPDTrainer as VOPDTrainer

__version__ = "0.1.0"

_HOMES = {
    "ESTIMATORS": "vopd.estimators",
    "distillation_loss": "vopd.estimators",
    "linear_distillation_loss": "vopd.estimators",
    "TopKScores": "vopd.estimators",
    "VOPDConfig": "vopd.training",
    "VOPDTrainer": "vopd.training",
}

__all__ = [
    "ESTIMATORS",
    "TopKScores",
    "VOPDConfig",
    "VOPDTrainer",
    "__version__",
    "distillation_loss",
    "linear_distillation_loss",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'vopd' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

"""vopd: stable on-policy distillation of language models.

`import vopd` loads nothing heavy: every name below is imported on first use, so the command line answers at
once and the losses need no more than torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vopd.lazy import lazy_names

if TYPE_CHECKING:
    from vopd.estimators import ESTIMATORS as ESTIMATORS
    from vopd.estimators import TopKScores as TopKScores
    from vopd.estimators import distillation_loss as distillation_loss
    from vopd.estimators import linear_distillation_loss as linear_distillation_loss
    from vopd.training import VOPDConfig as VOPDConfig
    from vopd.training import VOPDTrainer as VOPDTrainer

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "vopd.estimators": ("ESTIMATORS", "TopKScores", "distillation_loss", "linear_distillation_loss"),
        "vopd.training": ("VOPDConfig", "VOPDTrainer"),
    },
    "__version__",
)

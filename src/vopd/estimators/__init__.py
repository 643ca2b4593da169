"""Estimators: one short file each, and the two loss functions that take them by name."""

from vopd.kernels import DistillationOutput, Variance

from .base import Estimator
from .catalogue import ESTIMATORS
from .loss import distillation_loss, linear_distillation_loss
from .teacher_scores import TopKScores

__all__ = [
    "ESTIMATORS",
    "DistillationOutput",
    "Estimator",
    "TopKScores",
    "Variance",
    "distillation_loss",
    "linear_distillation_loss",
]

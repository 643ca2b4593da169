"""The estimators, the two loss functions, and the building blocks of custom estimators."""

from vopd.kernels import DistillationOutput, Estimate, GradientForm, Needs, Rows, Variance

from .base import Estimator
from .catalogue import ESTIMATORS, find_estimator
from .loss import distillation_loss, linear_distillation_loss
from .policy_gradient import centred_policy_gradient, policy_gradient
from .rao_blackwell import rao_blackwell
from .teacher_scores import TopKScores

__all__ = [
    "ESTIMATORS",
    "DistillationOutput",
    "Estimate",
    "Estimator",
    "GradientForm",
    "Needs",
    "Rows",
    "TopKScores",
    "Variance",
    "centred_policy_gradient",
    "distillation_loss",
    "find_estimator",
    "linear_distillation_loss",
    "policy_gradient",
    "rao_blackwell",
]

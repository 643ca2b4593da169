"""The mathematics of on-policy distillation as pure functions: tensors in, tensors out."""

from .baselines import (
    optimal_baseline,
    renormalised_top_k_baseline,
    rest_log_ratio,
    rest_mean_baseline,
    sparse_top_k_baseline,
    value_baseline,
)
from .gradient_variance import gradient_variance, squared_gradient_norm
from .group_advantages import group_advantages, without_spread
from .importance import importance_weights
from .losses import policy_gradient_loss, rao_blackwell_loss, reverse_kl, truncated_reverse_kl
from .moments import Moments, bucketed_moments, moments

__all__ = [
    "Moments",
    "bucketed_moments",
    "gradient_variance",
    "group_advantages",
    "importance_weights",
    "moments",
    "optimal_baseline",
    "policy_gradient_loss",
    "rao_blackwell_loss",
    "renormalised_top_k_baseline",
    "rest_log_ratio",
    "rest_mean_baseline",
    "reverse_kl",
    "sparse_top_k_baseline",
    "squared_gradient_norm",
    "truncated_reverse_kl",
    "value_baseline",
    "without_spread",
]

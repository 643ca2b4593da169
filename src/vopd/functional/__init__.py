"""The mathematics of on-policy distillation as pure functions: tensors in, tensors out.

A function returns what its name says on the scale of the rewards; those named ``centred_`` are off by r_top, the reward
of the student's most likely token ("top"). "Rest" means every token but that one, the "bucket" all tokens outside a
support, taken as one.

Axes in the signatures here and in ``kernels`` and ``estimators``: N tokens that count in the loss, one a row, and C of
them in a chunk; V vocabulary (V_s of the student, V_t of the teacher, where they may differ); D width of hidden states
(D_s, D_t); k tokens of a top k; K columns of statistics, the student's top token and the support; J ids at which a
gradient has a value of its own; ``*tokens`` whatever axes the caller's tokens have: (N,), (B, T) or none.
"""

from .baselines import (
    bucket_log_ratio,
    centred_optimal_baseline,
    centred_value_baseline,
    optimal_baseline,
    outside_mean_baseline,
    renormalised_top_k_baseline,
    sparse_top_k_baseline,
    value_baseline,
)
from .gradient_variance import gradient_variance, gradient_variance_from_centred, squared_gradient_norm
from .group_advantages import groups_without_spread, leave_one_out_advantages
from .importance import importance_weights
from .losses import policy_gradient_loss, rao_blackwell_loss, reverse_kl, truncated_reverse_kl
from .moments import Moments, bucketed_moments, moments

__all__ = [
    "Moments",
    "bucket_log_ratio",
    "bucketed_moments",
    "centred_optimal_baseline",
    "centred_value_baseline",
    "gradient_variance",
    "gradient_variance_from_centred",
    "groups_without_spread",
    "importance_weights",
    "leave_one_out_advantages",
    "moments",
    "optimal_baseline",
    "outside_mean_baseline",
    "policy_gradient_loss",
    "rao_blackwell_loss",
    "renormalised_top_k_baseline",
    "reverse_kl",
    "sparse_top_k_baseline",
    "squared_gradient_norm",
    "truncated_reverse_kl",
    "value_baseline",
]

"""The equations of on-policy distillation as pure functions: tensors in, tensors out.

p and q are the student's and the teacher's probabilities, r = log q - log p is the reward of a token, and y is the
sampled token. Rewards, baselines and advantages are in nats. The student's most likely token is called "top", all other
tokens are the "rest", and the "bucket" is all tokens outside a support, treated as one. Functions named ``centred_``
return their value minus r_top, the reward of the top token.

Axes in the signatures of ``functional``, ``kernels`` and ``estimators``:

- N: tokens in the loss, one per row; C: the rows of one chunk
- V: vocabulary; V_s and V_t where student and teacher may differ
- D: hidden size; D_s and D_t where they may differ
- k: tokens in a top k
- K: columns of statistics: the student's top token, then the support
- J: ids at which a gradient has an extra term
- ``*tokens``: the axes of the caller's tokens: (N,), (B, T) or none
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

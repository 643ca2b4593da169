"""The table of estimators."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .base import Estimator
from .exact import FULL_RKL, TOP_K_RKL
from .policy_gradient import (
    OPD,
    VOPD,
    VOPD_OPTIMAL,
    VOPD_SPARSE,
    VOPD_TEACHER_TOP_K,
    VOPD_TEACHER_TOP_K_OPTIMAL,
    VOPD_TOP_K,
)
from .rao_blackwell import RAO_BLACKWELL_TEACHER_TOP_K, RAO_BLACKWELL_TOP_K

_ORDER = (
    OPD, VOPD, VOPD_TOP_K, VOPD_SPARSE, VOPD_OPTIMAL, VOPD_TEACHER_TOP_K, VOPD_TEACHER_TOP_K_OPTIMAL,
    RAO_BLACKWELL_TOP_K, RAO_BLACKWELL_TEACHER_TOP_K, FULL_RKL, TOP_K_RKL,
)  # fmt: skip
ESTIMATORS: Mapping[str, Estimator] = MappingProxyType({estimator.name: estimator for estimator in _ORDER})
"""Every estimator by name. Listed here and nowhere else."""

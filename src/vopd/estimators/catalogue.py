"""The table of estimators."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .base import Estimator
from .full_rkl import FULL_RKL
from .opd import OPD
from .rao_blackwell_teacher_top_k import RAO_BLACKWELL_TEACHER_TOP_K
from .rao_blackwell_top_k import RAO_BLACKWELL_TOP_K
from .top_k_rkl import TOP_K_RKL
from .vopd import VOPD
from .vopd_optimal import VOPD_OPTIMAL
from .vopd_sparse import VOPD_SPARSE
from .vopd_teacher_top_k import VOPD_TEACHER_TOP_K
from .vopd_teacher_top_k_optimal import VOPD_TEACHER_TOP_K_OPTIMAL
from .vopd_top_k import VOPD_TOP_K

ESTIMATORS: Mapping[str, Estimator] = MappingProxyType(
    {
        "opd": OPD,
        "vopd": VOPD,
        "vopd_top_k": VOPD_TOP_K,
        "vopd_sparse": VOPD_SPARSE,
        "vopd_optimal": VOPD_OPTIMAL,
        "vopd_teacher_top_k": VOPD_TEACHER_TOP_K,
        "vopd_teacher_top_k_optimal": VOPD_TEACHER_TOP_K_OPTIMAL,
        "rao_blackwell_top_k": RAO_BLACKWELL_TOP_K,
        "rao_blackwell_teacher_top_k": RAO_BLACKWELL_TEACHER_TOP_K,
        "full_rkl": FULL_RKL,
        "top_k_rkl": TOP_K_RKL,
    }
)
"""Every estimator by name. Listed here and nowhere else."""

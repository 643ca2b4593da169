"""The table of estimators, and how those are found that are not in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from vopd.errors import ConfigurationError, did_you_mean
from vopd.user_code import imported, spelling_of

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

SPECTRUM = (OPD, VOPD, VOPD_TOP_K, VOPD_OPTIMAL, RAO_BLACKWELL_TEACHER_TOP_K, FULL_RKL)
"""From vanilla to exact: what `vopd variance` measures unless told otherwise."""


def find_estimator(estimator: str | Estimator) -> Estimator:
    """The estimator that a name of ``ESTIMATORS`` or ``module:NAME`` stands for; an Estimator stands for itself.

    Raises:
        ConfigurationError: there is none, and the nearest name is suggested; or it is one of the caller's own under a
            name of ``ESTIMATORS``, which every table would take for that one.
    """
    if isinstance(estimator, str):
        return _named(estimator)
    if not isinstance(estimator, Estimator):
        raise ConfigurationError(
            f"an estimator is a name, module:NAME or a vopd.estimators.Estimator, not a {type(estimator).__name__}"
        )
    if ESTIMATORS.get(estimator.name, estimator) != estimator:
        raise ConfigurationError(f"vopd has an estimator called {estimator.name!r} already: give yours another name")
    return estimator


def _named(spelling: str) -> Estimator:
    if spelling in ESTIMATORS:
        return ESTIMATORS[spelling]
    if ":" not in spelling:
        known = f"{did_you_mean(spelling, ESTIMATORS)} known are {', '.join(ESTIMATORS)}"
        raise ConfigurationError(
            f"unknown estimator {spelling!r}: {known.strip()}; one of your own is named module:NAME"
        )
    found = imported(spelling, "estimator")
    if not isinstance(found, Estimator):
        raise ConfigurationError(
            f"estimator '{spelling}' is a {type(found).__name__}: it must be a vopd.estimators.Estimator"
        )
    return find_estimator(found)


def find_estimators(estimators: Iterable[str | Estimator]) -> list[Estimator]:
    """Several of them, each once, in order.

    Raises:
        ConfigurationError: as ``find_estimator``, and where two different ones have the same name.
    """
    found = list(dict.fromkeys(find_estimator(estimator) for estimator in estimators))
    for name, count in Counter(estimator.name for estimator in found).items():
        if count > 1:
            raise ConfigurationError(f"{count} estimators are called {name!r}: give each a name of its own")
    return found


def spelled(estimator: Estimator) -> str:
    """What stands for an estimator in a file: its name in ``ESTIMATORS``, or ``module:NAME``.

    Raises:
        ConfigurationError: no module that another process can import holds it.
    """
    spelling = estimator.name if estimator.name in ESTIMATORS else spelling_of(estimator)
    if spelling is None:
        raise ConfigurationError(
            f"estimator {estimator.name!r} cannot be written down for another process: no module that can be imported "
            "holds it; define it at the top of a module of its own, not in the script or notebook that is run, and "
            "import it from there, or pass module:NAME"
        )
    return spelling

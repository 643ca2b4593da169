"""The table of built-in estimators, and the lookup of built-in and custom ones."""

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
"""The built-in estimators by name."""

SPECTRUM = (OPD, VOPD, VOPD_TOP_K, VOPD_OPTIMAL, RAO_BLACKWELL_TEACHER_TOP_K, FULL_RKL)
"""From vanilla to exact: what `vopd variance` measures by default."""


def find_estimator(estimator: str | Estimator) -> Estimator:
    """Return the estimator for a name in ``ESTIMATORS`` or a ``module:NAME``; an ``Estimator`` is returned unchanged.

    Raises:
        ConfigurationError: there is no such estimator, and the error suggests the closest name; or a custom estimator
            has the name of a built-in one.
    """
    if isinstance(estimator, str):
        return _named(estimator)
    if not isinstance(estimator, Estimator):
        raise ConfigurationError(
            f"estimator must be a name, module:NAME or a vopd.estimators.Estimator, not a {type(estimator).__name__}"
        )
    if ESTIMATORS.get(estimator.name, estimator) != estimator:
        raise ConfigurationError(f"{estimator.name!r} is a built-in estimator already; give yours another name")
    return estimator


def _named(spelling: str) -> Estimator:
    if spelling in ESTIMATORS:
        return ESTIMATORS[spelling]
    if ":" not in spelling:
        known = f"{did_you_mean(spelling, ESTIMATORS)} choose one of {', '.join(ESTIMATORS)}"
        raise ConfigurationError(
            f"unknown estimator {spelling!r}: {known.strip()}; name a custom estimator as module:NAME"
        )
    found = imported(spelling, "estimator")
    if not isinstance(found, Estimator):
        raise ConfigurationError(
            f"estimator '{spelling}' is a {type(found).__name__}, but must be a vopd.estimators.Estimator"
        )
    return find_estimator(found)


def find_estimators(estimators: Iterable[str | Estimator]) -> list[Estimator]:
    """Return several estimators in order, without duplicates.

    Raises:
        ConfigurationError: as ``find_estimator``, or two different estimators have the same name.
    """
    found = list(dict.fromkeys(find_estimator(estimator) for estimator in estimators))
    for name, count in Counter(estimator.name for estimator in found).items():
        if count > 1:
            raise ConfigurationError(f"{count} estimators are called {name!r}; give each a different name")
    return found


def spelled(estimator: Estimator) -> str:
    """Return the text that names an estimator in a file: its name in ``ESTIMATORS``, or ``module:NAME``.

    Raises:
        ConfigurationError: the estimator is not in a module that another process can import.
    """
    spelling = estimator.name if estimator.name in ESTIMATORS else spelling_of(estimator)
    if spelling is None:
        raise ConfigurationError(
            f"estimator {estimator.name!r} is not in a module that another process can import; define it at the top "
            "level of a separate module, not in the script or notebook that you run, and import it from there, or pass "
            "module:NAME"
        )
    return spelling

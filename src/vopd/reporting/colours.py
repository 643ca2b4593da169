"""The colours of all figures: safe for colour-blind readers, and different in lightness."""

from __future__ import annotations

from collections.abc import Mapping

from vopd.estimators import ESTIMATORS, Estimator

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#4d4d4d"
# For lines that are not estimators (benchmarks, rewards, teachers), in this order.
SERIES = (BLUE, ORANGE, GREEN, "#8c6bb1", "#cc79a7", "#b8860b", "#56b4e9", GREY)


def colour_of(estimator: str, own: Mapping[str, str] | None = None) -> str:
    """The colour of an estimator in every figure, whatever learning rate follows its name.

    Args:
        estimator: its name.
        own: colours of custom estimators; one that is in neither table is grey.
    """
    name = estimator.split(" ")[0]
    return ESTIMATORS[name].colour if name in ESTIMATORS else (own or {}).get(name, Estimator.colour)

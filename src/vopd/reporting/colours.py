"""The colours of all figures, chosen to differ in lightness too, and told apart by colour-blind readers."""

from __future__ import annotations

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#4d4d4d"
# For lines that are no estimators, benchmarks say, in this order.
SERIES = (BLUE, ORANGE, GREEN, "#8c6bb1", "#cc79a7", "#b8860b", "#56b4e9", GREY)
# One colour an estimator in every figure; a line a family.
COLOURS = {
    "opd": GREY,
    "vopd": BLUE, "vopd_top_k": "#56b4e9", "vopd_sparse": "#7fa7c9", "vopd_optimal": ORANGE,
    "vopd_teacher_top_k": "#8c6bb1", "vopd_teacher_top_k_optimal": "#6a3d9a",
    "rao_blackwell_top_k": "#66c2a5", "rao_blackwell_teacher_top_k": GREEN,
    "full_rkl": "#cc79a7", "top_k_rkl": "#b8860b",
}  # fmt: skip
_OTHER = "#999999"


def colour_of(estimator: str) -> str:
    """Return the colour that stands for an estimator in every figure, whatever its learning rate."""
    return COLOURS.get(estimator.split(" ")[0], _OTHER)

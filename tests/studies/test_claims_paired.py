"""The study's tests over seeds, against tables and a textbook."""

from __future__ import annotations

import math

import pytest

from studies.claims.paired import holm, paired_t_difference


def test_paired_runs() -> None:
    found = paired_t_difference([3.0, 4.0, 6.0, 5.0, 7.0], [2.0, 2.0, 3.0, 3.0, 3.0])
    # Differences 1, 2, 3, 2, 4: mean 2.4, standard deviation 1.1402, t = 4.7068 of 4 degrees of freedom.
    assert found.value == pytest.approx(2.4)
    sine = found.value / math.sqrt(found.value**2 + 4 * 1.3 / 5)  # P(|T| <= t) of 4 degrees is 3/2 sin - 1/2 sin^3
    assert found.p_value == pytest.approx(1 - 1.5 * sine + sine**3 / 2, abs=1e-12)
    assert found.p_value == pytest.approx(0.00926169676, abs=1e-9)
    assert (found.low, found.high) == pytest.approx((2.4 - 1.4157, 2.4 + 1.4157), abs=1e-3)
    assert paired_t_difference([1.0, 1.0], [1.0, 1.0]).p_value == 1
    assert paired_t_difference([math.inf, 1.0], [1.0, 1.0]).p_value == 1


def test_holm_is_the_textbook_step_down() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], abs=1e-9)
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == []

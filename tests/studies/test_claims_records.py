"""What the study computes from its runs: figures, paired comparisons, shares of a gap, by hand and by a textbook."""

from __future__ import annotations

import math
from typing import Any

import pytest

from studies.claims import design
from studies.claims.comparisons import (
    COMMON_RATE,
    OWN_RATE,
    Runs,
    compare,
    compare_all,
    paired_t_difference,
    primary,
    secondary,
    share_closed,
)
from studies.claims.precision import precision
from studies.claims.records import curve, figure
from studies.made_up import best_rates, records, study
from vopd.errors import DataError

START = {"main": {"reverse_kl": 0.32, "accuracy": 0.6}}
BEST = {"main": {"opd": 1e-4, "vopd": 3e-4, "full_rkl": 3e-4}}


def record(name: str, seed: int, value: float, rate: float | None = None) -> dict[str, Any]:
    """A run whose three checkpoints have one divergence each."""
    found = {"setting": "main", "estimator": name, "rate": rate or BEST["main"][name], "seed": seed}
    curve = [[step, [[100 * value, 100], [100 * value, 100]]] for step in (160, 180, 200)]
    return {**found, "reverse_kl": curve, "accuracy": 1 - value, "sampled_accuracy": 0.5}


@pytest.fixture(scope="module")
def runs() -> Runs:
    return Runs(records(), study()["starts"], best_rates())


# ---- a run's figure ----------------------------------------------------------------------------------------------


def test_a_figure_is_the_mean_over_checkpoints_of_the_divergence_per_token() -> None:
    early = [20, [[900.0, 10], [900.0, 10]]]
    last = [[160, [[10.0, 100], [30.0, 100]]], [180, [[20.0, 50], [10.0, 100]]], [200, [[30.0, 200], [30.0, 200]]]]
    found = figure({"reverse_kl": [early, *last]})
    assert found.value == pytest.approx((0.2 + 0.2 + 0.15) / 3)
    assert figure({"reverse_kl": last}, checkpoints=1).value == pytest.approx(0.15)
    assert curve({"reverse_kl": last}) == [(160, 0.2), (180, 0.2), (200, 0.15)]


def test_the_error_of_a_figure_is_that_of_a_ratio_of_means_over_blocks() -> None:
    # (total - 0.2 tokens) / mean tokens: -0.1 and 0.1, whose standard error is 0.1.
    uneven = [200, [[10.0, 100], [30.0, 100]]]
    assert figure({"reverse_kl": [uneven]}, 1).error == pytest.approx(0.1)
    # A block that is longer in the same proportion adds no error.
    assert figure({"reverse_kl": [[200, [[10.0, 50], [30.0, 150]]]]}, 1).error == pytest.approx(0)
    # Nor does a longer block weigh as much as a shorter one: -0.05 and 0.05, though 0.2 and 0.333 per token.
    assert figure({"reverse_kl": [[200, [[10.0, 50], [50.0, 150]]]]}, 1).error == pytest.approx(0.05)
    # The blocks of three checkpoints hold the same problems: -0.1 and 0.1 twice, and once the other way round.
    other = [180, [[30.0, 100], [10.0, 100]]]
    assert figure({"reverse_kl": [other, uneven, uneven]}).error == pytest.approx(0.1 / 3)


def test_a_share_of_the_completions_is_the_first_blocks() -> None:
    blocks = [[10.0, 100], [30.0, 100], [50.0, 100], [70.0, 100]]
    assert figure({"reverse_kl": [[200, blocks]]}, 1, 0.5).value == pytest.approx(0.2)


def test_a_crashed_run_counts_as_the_student_before_training() -> None:
    crashed = {"setting": "main", "estimator": "vopd", "rate": 3e-4, "seed": 1, "failed": "not finite"}
    found = Runs([record("opd", 0, 0.3), record("opd", 1, 0.3), record("vopd", 0, 0.2), crashed], START, BEST)
    assert found.values("main", OWN_RATE, ["vopd"]) == [pytest.approx([0.2, 0.32])]
    assert found.values("main", OWN_RATE, ["vopd"], "accuracy") == [[0.8, 0.6]]
    assert compare(found, ("main", OWN_RATE, "vopd", "opd")).difference.value == pytest.approx(-0.04)


def test_runs_are_found_by_seed_and_by_the_rate_of_the_comparison() -> None:
    rows = [record("opd", seed, 0.3 + seed / 100) for seed in (0, 1, 2)]
    rows += [record("opd", 0, 0.5, design.COMMON_RATE), *(record("vopd", seed, 0.2) for seed in (2, 1))]
    found = Runs(rows, START, BEST)
    assert found.values("main", OWN_RATE, ["opd", "vopd"]) == [pytest.approx([0.31, 0.32]), pytest.approx([0.2, 0.2])]
    assert found.values("main", COMMON_RATE, ["opd"]) == [pytest.approx([0.5])]


# ---- comparisons -------------------------------------------------------------------------------------------------


def test_the_paired_t_test_is_the_textbook_one() -> None:
    found = paired_t_difference([3.0, 4.0, 6.0, 5.0, 7.0], [2.0, 2.0, 3.0, 3.0, 3.0])
    # Differences 1, 2, 3, 2, 4: mean 2.4, standard deviation 1.1402, t = 4.7068 of 4 degrees of freedom.
    sine = 2.4 / math.sqrt(2.4**2 + 4 * 1.3 / 5)  # P(|T| <= t) of 4 degrees is 3/2 sin - 1/2 sin^3
    assert found.p_value == pytest.approx(1 - 1.5 * sine + sine**3 / 2, abs=1e-12)
    assert found.p_value == pytest.approx(0.00926169676, abs=1e-9)
    assert (found.low, found.high) == pytest.approx((2.4 - 1.4157, 2.4 + 1.4157), abs=1e-3)
    assert paired_t_difference([1.0, 1.0], [1.0, 1.0]).p_value == 1
    with pytest.raises(DataError, match="the same runs"):
        paired_t_difference([1.0, 2.0], [1.0])


def test_holm_is_the_textbook_step_down_over_each_family(runs: Runs) -> None:
    compared = compare_all(runs)
    families = [len(primary()), len(secondary())] * 2
    assert len(compared) == sum(families)
    for size in families:
        family, compared = compared[:size], compared[size:]
        least = 0.0
        for rank, entry in enumerate(sorted(family, key=lambda entry: entry.difference.p_value)):
            least = max(least, min(1.0, (size - rank) * entry.difference.p_value))
            assert entry.adjusted == pytest.approx(least)


def test_a_pair_is_compared_once() -> None:
    every = [*primary(), *secondary()]
    assert len({(setting, rates, frozenset(pair)) for setting, rates, *pair in every}) == len(every)
    for setting, names in design.ESTIMATORS.items():
        own = [pair for pair in every if pair[:2] == (setting, OWN_RATE)]
        assert len(own) == len(names) * (len(names) - 1) // 2


def test_the_share_of_a_gap_is_a_ratio_of_means_over_common_seeds() -> None:
    rows = [("opd", [0.3, 0.4]), ("vopd", [0.2, 0.35]), ("full_rkl", [0.1, 0.2, 9.0])]
    kept = [record(name, seed, value) for name, values in rows for seed, value in enumerate(values)]
    share = share_closed(Runs(kept, START, BEST), "main", OWN_RATE, "opd", "vopd", "full_rkl")
    # (0.1 + 0.05) / (0.2 + 0.2); its linear form has +-0.125, and t of one degree of freedom is 12.706.
    assert share.value == pytest.approx(0.375)
    assert (share.low, share.high) == pytest.approx((0.375 - 1.58827, 0.375 + 1.58827), abs=1e-3)
    with pytest.raises(DataError, match="no distance to close"):
        share_closed(Runs(kept, START, BEST), "main", OWN_RATE, "full_rkl", "vopd", "opd")


def test_precision_is_the_error_of_a_figure_and_the_deviation_of_differences(runs: Runs) -> None:
    found = [row for row in precision(records(), best_rates()) if row["setting"] == "main"]
    assert [(row["checkpoints"], row["share"]) for row in found] == [(1, 0.2), (1, 1.0), (3, 1.0)]
    errors = [row["error"] for row in found]
    # A fifth of the completions has sqrt(5) times the error; three checkpoints share the problems' part of it.
    assert errors[0] == pytest.approx(math.sqrt(5) * errors[1], rel=0.2) and errors[2] < errors[1]
    one, other = runs.values("main", OWN_RATE, ["vopd", "opd"])
    differences = [a - b for a, b in zip(one, other, strict=True)]
    mean = sum(differences) / len(differences)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in differences) / (len(differences) - 1))
    assert found[-1]["vopd - opd"]["deviation"] == pytest.approx(deviation)
    # The made-up completions are independent: a difference of two runs has sqrt(2) times the error of one.
    assert found[-1]["vopd - opd"]["error"] == pytest.approx(math.sqrt(2) * errors[-1], rel=0.1)

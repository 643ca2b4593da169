from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch

from vopd.errors import ConfigurationError, DataError
from vopd.statistics import (
    Difference,
    Score,
    avg_at_k,
    bootstrap_interval,
    mean_score,
    paired_difference,
    pass_at_k,
    positive_t_interval,
    t_interval,
    t_quantile,
)

OUTCOMES = [[True, False, False, True], [False, False, False, False], [True, True, True, True]]


class TestAvgAtK:
    def test_is_the_mean_over_problems_of_the_share_of_right_samples(self) -> None:
        assert avg_at_k(OUTCOMES).value == pytest.approx((0.5 + 0 + 1) / 3)

    @pytest.mark.parametrize("as_type", [np.array, torch.tensor, lambda rows: [np.array(row) for row in rows]])
    def test_takes_lists_arrays_and_tensors(self, as_type) -> None:
        assert avg_at_k(as_type(OUTCOMES)) == avg_at_k(OUTCOMES)

    @pytest.mark.parametrize("value", [True, False])
    def test_all_equal_gives_an_interval_of_width_zero(self, value: bool) -> None:
        score = avg_at_k([[value] * 3] * 5)
        assert (score.value, score.low, score.high, score.count) == (value, value, value, 5)

    def test_one_problem(self) -> None:
        assert avg_at_k([[1, 0]]) == Score(0.5, 0.5, 0.5, 1)

    @pytest.mark.parametrize("bad", [[], [[]], [[], []], [True, False], np.zeros((0, 4)), [[[1]]]])
    def test_wants_problems_and_samples(self, bad) -> None:
        with pytest.raises(DataError, match="problems, samples"):
            avg_at_k(bad)

    def test_refuses_rows_of_different_lengths(self) -> None:
        with pytest.raises(DataError, match="same number of samples"):
            avg_at_k([[True, False], [True]])

    @pytest.mark.parametrize("bad", [[[0.5, 1.0]], [[math.nan, 1.0]], [[2, 1]]])
    def test_refuses_partial_scores(self, bad) -> None:
        with pytest.raises(DataError, match="True or False"):
            avg_at_k(bad)


class TestPassAtK:
    @pytest.mark.parametrize("k", [1, 2, 3, 6])
    def test_equals_the_share_of_subsets_with_a_right_sample(self, k: int) -> None:
        draw = random.Random(0)
        correct = [[draw.random() < 0.3 for _ in range(6)] for _ in range(7)]
        shares = [np.mean([any(subset) for subset in itertools.combinations(row, k)]) for row in correct]
        assert pass_at_k(correct, k).value == pytest.approx(np.mean(shares), abs=1e-12)

    def test_at_one_is_avg_at_k(self) -> None:
        assert pass_at_k(OUTCOMES, 1) == avg_at_k(OUTCOMES)

    def test_is_exact_for_many_samples(self) -> None:
        correct = [[True] + [False] * 1999]
        assert pass_at_k(correct, 1000).value == pytest.approx(0.5, abs=1e-12)

    @pytest.mark.parametrize("k", [0, -1, 5])
    def test_refuses_k_outside_the_samples(self, k: int) -> None:
        with pytest.raises(ConfigurationError, match="4 samples per problem"):
            pass_at_k(OUTCOMES, k)


class TestFewValues:
    # Roots of the regularised incomplete beta function, found in 30 digits.
    @pytest.mark.parametrize(
        ("degrees", "level", "expected"),
        [
            (1, 0.95, 12.70620473617471), (2, 0.95, 4.302652729749464), (3, 0.95, 3.182446305283710),
            (4, 0.95, 2.776445105197794), (15, 0.95, 2.131449545559776), (100, 0.95, 1.983971518523552),
            (5, 0.99, 4.032142983555228), (4, 0.999, 8.610301581379275), (1, 0.999, 636.6192487687196),
        ],
    )  # fmt: skip
    def test_quantiles_are_those_of_the_tables(self, degrees: int, level: float, expected: float) -> None:
        assert t_quantile(degrees, level) == pytest.approx(expected, abs=1e-9)

    @pytest.mark.parametrize("level", [0.5, 0.8, 0.95, 0.99])
    def test_quantiles_are_those_of_the_closed_forms(self, level: float) -> None:
        assert t_quantile(1, level) == pytest.approx(math.tan(math.pi / 2 * level), abs=1e-9)
        assert t_quantile(2, level) == pytest.approx(level * math.sqrt(2 / (1 - level**2)), abs=1e-9)

    def test_the_interval_is_the_textbook_one(self) -> None:
        assert t_interval([1.0, 2.0, 3.0]) == pytest.approx(
            (2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), abs=1e-4
        )

    def test_positive_means_have_positive_intervals(self) -> None:
        low, high = positive_t_interval([0.01, 0.02, 5.0])
        assert 0 < low < 5.03 / 3 < high
        assert math.sqrt(low * high) == pytest.approx(5.03 / 3)
        assert positive_t_interval([2.0, 2.0]) == (2.0, 2.0)

    def test_one_value_has_no_interval(self) -> None:
        with pytest.raises(ConfigurationError, match="at least two"):
            t_interval([1.0])


class TestBootstrap:
    def test_matches_the_textbook_interval_of_a_proportion(self) -> None:
        values = [1.0] * 140 + [0.0] * 60
        low, high = bootstrap_interval(values)
        half = 1.96 * math.sqrt(0.7 * 0.3 / 200)
        assert low == pytest.approx(0.7 - half, abs=0.01) and high == pytest.approx(0.7 + half, abs=0.01)

    def test_matches_a_plain_loop_over_draws(self) -> None:
        values = [random.Random(1).random() for _ in range(30)]
        draw = random.Random(2)
        means = sorted(sum(draw.choices(values, k=30)) / 30 for _ in range(4000))
        low, high = bootstrap_interval(values)
        assert low == pytest.approx(means[100], abs=0.02) and high == pytest.approx(means[3900], abs=0.02)

    def test_gives_the_same_interval_every_time_and_leaves_the_global_state(self) -> None:
        state = torch.get_rng_state()
        assert bootstrap_interval([0.0, 1.0, 1.0]) == bootstrap_interval([0.0, 1.0, 1.0])
        assert torch.equal(state, torch.get_rng_state())

    def test_draws_in_blocks_are_as_many_as_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from vopd import statistics

        monkeypatch.setattr(statistics, "_BLOCK", 90)
        assert sum(statistics._block_sizes(30)) == 10_000
        assert max(statistics._block_sizes(30)) * 30 <= 90
        assert set(statistics._block_sizes(1000)) == {1}

    def test_is_over_problems_and_not_over_samples(self) -> None:
        """Eight equal samples of a problem say no more than one."""
        single = [[value] for value in [True] * 6 + [False] * 4]
        assert avg_at_k([row * 8 for row in single]).low == avg_at_k(single).low

    @pytest.mark.parametrize("bad", [[], [math.nan], [math.inf, 0.0]])
    def test_refuses_nothing_and_non_finite(self, bad) -> None:
        with pytest.raises(DataError):
            mean_score(bad)


class TestPairedDifference:
    def test_value_and_sign(self) -> None:
        assert paired_difference([1.0, 1.0, 0.0], [0.0, 1.0, 0.0]).value == pytest.approx(1 / 3)

    def test_exact_p_value_matches_enumeration(self) -> None:
        differences = [0.5, 0.25, -0.1, 0.3, 0.2]
        observed = abs(sum(differences))
        flips = [abs(sum(s * d for s, d in zip(signs, differences))) for signs in itertools.product((1, -1), repeat=5)]
        expected = sum(value >= observed - 1e-12 for value in flips) / len(flips)
        assert paired_difference(differences, [0.0] * 5).p_value == pytest.approx(expected)

    def test_sampled_p_value_matches_the_normal_one(self) -> None:
        draw = random.Random(3)
        a = [draw.gauss(0.1, 0.5) for _ in range(100)]
        z = abs(sum(a)) / math.sqrt(sum(value**2 for value in a))
        assert paired_difference(a, [0.0] * 100).p_value == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.02)

    def test_equal_scores_have_p_value_one(self) -> None:
        assert paired_difference([0.1] * 40, [0.1] * 40) == Difference(0.0, 0.0, 0.0, 1.0)

    def test_two_problems_cannot_be_significant(self) -> None:
        assert paired_difference([1.0, 1.0], [0.0, 0.0]).p_value == 0.5

    def test_averages_samples_per_problem(self) -> None:
        assert paired_difference([[1, 0], [1, 1]], [[0, 0], [1, 1]]).value == pytest.approx(0.25)

    def test_is_narrower_than_unpaired_where_problems_differ_in_difficulty(self) -> None:
        easy_and_hard = [0.0, 1.0] * 50
        slightly_better = [value * 0.9 + 0.1 for value in easy_and_hard]
        paired = paired_difference(slightly_better, easy_and_hard)
        unpaired = mean_score(easy_and_hard)
        assert paired.high - paired.low < 0.3 * (unpaired.high - unpaired.low)

    def test_refuses_different_problems(self) -> None:
        with pytest.raises(DataError, match="3 in a, 2 in b"):
            paired_difference([1, 0, 1], [1, 0])


def test_scores_print_in_per_cent() -> None:
    assert str(Score(0.712, 0.68, 0.741, 500)) == "71.2 % [68.0, 74.1]"
    assert str(Difference(0.031, -0.01, 0.07, 0.2)) == "+3.1 points [-1.0, +7.0], p = 0.2"

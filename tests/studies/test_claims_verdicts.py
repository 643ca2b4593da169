"""The rules of the claims study: each can come out every way, and swapped labels swap the verdicts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import pytest

from studies.claims import verdicts as rules
from studies.claims.comparisons import COMMON_RATE, OWN_RATE, Compared, Runs, compare_all, primary
from studies.claims.verdicts import REFUTED, SUPPORTED, UNDECIDED, Evidence, Verdict, all_verdicts
from studies.made_up import LEVELS, NOISE, around, best_rates, cost, fixed, record, records, study
from vopd.statistics import Difference

Claim = Callable[[Evidence], Verdict]
NOTHING = Runs([], {}, {})


# ---- labels ------------------------------------------------------------------------------------------------------


def swapped(a: str, b: str) -> Evidence:
    """The made-up study with two estimators' labels exchanged in the runs, learning rates, measurements and costs."""
    other = {a: b, b: a}

    def renamed(table: Mapping[str, Any]) -> dict[str, Any]:
        return {other.get(name, name): value for name, value in table.items()}

    runs = [{**record, "estimator": other.get(record["estimator"], record["estimator"])} for record in records()]
    best = {setting: renamed(rates) for setting, rates in best_rates().items()}
    costs = cost()
    for row in costs["trainable"]["rows"]:
        row["name"] = other.get(row["name"], row["name"])
    found = Runs(runs, study()["starts"], best)
    # The measurements as ratios to opd and vopd follow from every estimator's variance.
    return Evidence(found, compare_all(found), fixed(renamed(NOISE)), costs)


@pytest.fixture(scope="module")
def original() -> Evidence:
    found = Runs(records(), study()["starts"], best_rates())
    return Evidence(found, compare_all(found), fixed(), cost())


# A pair of labels; the verdicts that turn. No rule of UNNAMED compares one of these labels.
PAIRS = [
    ("opd", "vopd", {"a": REFUTED, "b1": REFUTED, "c1": REFUTED}),
    ("vopd", "vopd_optimal", {"b2": SUPPORTED, "c1": REFUTED, "f1": REFUTED, "h": REFUTED}),
]
UNNAMED = {"c2", "f2", "g1", "g2"}


@pytest.mark.parametrize(("a", "b", "turned"), PAIRS)
def test_swapped_labels_swap_the_verdicts_and_change_nothing_else(
    original: Evidence, a: str, b: str, turned: dict[str, str]
) -> None:
    other = {a: b, b: a}
    found = swapped(a, b)
    # Every comparison is the original's under the other names, with the sign of its order.
    before = {_names(entry): entry for entry in original.compared}
    assert len(before) == len(found.compared)
    for entry in found.compared:
        *place, first, second = _names(entry)
        names = other.get(first, first), other.get(second, second)
        if same := before.get((*place, *names)):
            assert _numbers(entry) == pytest.approx(_numbers(same), abs=1e-12)
        else:
            assert _numbers(entry) == pytest.approx(_numbers(_reversed(before[*place, *names[::-1]])), abs=1e-12)
    verdicts, now = ({v.claim: v for v in all_verdicts(evidence)} for evidence in (original, found))
    assert all(verdicts[claim].verdict != verdict for claim, verdict in turned.items())
    was = {claim: verdict.verdict for claim, verdict in verdicts.items()}
    assert {claim: verdict.verdict for claim, verdict in now.items()} == {**was, **turned}
    for claim in UNNAMED:
        assert asdict(now[claim]) == asdict(verdicts[claim]), claim


def _names(entry: Compared) -> tuple[str, str, str, str, str]:
    return entry.metric, entry.setting, entry.rates, entry.first, entry.second


def _numbers(entry: Compared) -> tuple[float, ...]:
    found = entry.difference
    return found.value, found.low, found.high, found.p_value, entry.lower_in, entry.seeds


def _reversed(entry: Compared) -> Compared:
    found = entry.difference
    turned = Difference(-found.value, -found.high, -found.low, found.p_value)
    names = entry.setting, entry.rates, entry.metric, entry.second, entry.first
    return Compared(*names, entry.seeds, turned, entry.seeds - entry.lower_in)


# ---- rules -------------------------------------------------------------------------------------------------------


def compared(setting: str, pair: tuple[str, str], value: float, adjusted: float) -> list[Compared]:
    """All primary comparisons clearly negative, but for one."""
    moved = setting, OWN_RATE, *pair
    return [
        Compared(*one[:2], "reverse_kl", *one[2:], 10, Difference(found, found - 0.01, found + 0.01, p), 5, p)
        for one in primary() for found, p in [(value, adjusted) if one == moved else (-0.02, 0.001)]
    ]  # fmt: skip


TRAINED = [
    (rules.trains_better, "larger", ("vopd", "opd")),
    (rules.optimal_baseline, "sorting", ("vopd_optimal", "vopd")),
    (rules.rao_blackwell, "main", ("rao_blackwell_teacher_top_k", "vopd")),
]
SIGNIFICANT = [
    (-0.02, 0.01, SUPPORTED), (0.02, 0.01, REFUTED), (-0.02, 0.06, UNDECIDED), (0.02, 0.06, UNDECIDED),
]  # fmt: skip


@pytest.mark.parametrize(("value", "adjusted", "expected"), SIGNIFICANT)
@pytest.mark.parametrize(("claim", "setting", "pair"), TRAINED)
def test_training_decides_by_one_significant_difference(
    claim: Claim, setting: str, pair: tuple[str, str], value: float, adjusted: float, expected: str
) -> None:
    assert claim(Evidence(NOTHING, compared(setting, pair, value, adjusted), fixed(), cost())).verdict == expected


# One number at fixed parameters in one setting: where it is, and values that support, refute, leave undecided.
RATIO = (around(0.5), around(1.2), around(0.98))
MOVED = [
    (rules.less_variance, "main estimators vopd token_over_opd", RATIO),
    (rules.less_variance, "sorting samplers exact vopd relative_bias", (1e-10, 1e-8)),
    (rules.top_k_keeps, "larger estimators vopd_top_k,_k_=_5 kept", (around(0.9), around(0.7), around(0.82))),
    (rules.top_k_objective, "main estimators top_k_rkl,_k_=_5 relative_bias",
     (around(0.02), around(0.0, 1e-4), around(0.0, 0.01))),
    (rules.optimal_baseline, "larger estimators vopd_optimal token_over_vopd", RATIO),
    (rules.sparse_baseline, "main estimators vopd_sparse,_k_=_5 token_over_top_k",
     (around(1.0), around(1.2), around(1.08))),
    (rules.rao_blackwell, "sorting estimators rao_blackwell_teacher_top_k,_k_=_20 token_over_vopd", RATIO),
    (rules.where_it_hurts, "main profile value_hurts_share", (around(0.02), around(0.005), around(0.0102))),
    (rules.gain_shrinks, "sorting along_training change", (around(0.05), around(-0.05), around(0.01, 0.02))),
    (rules.wrong_samplers, "larger samplers top-p_0.95 vopd_optimal relative_bias", (0.001, 0.07)),
]  # fmt: skip
CASES = [
    pytest.param(claim, place, value, expected, id=f"{claim.__name__}, {place.split()[-1]}, {expected}")
    for claim, place, values in MOVED
    for value, expected in zip(values, (SUPPORTED, REFUTED, UNDECIDED), strict=False)
]


@pytest.mark.parametrize(("claim", "place", "value", "expected"), CASES)
def test_fixed_parameters_decide_by_one_number(
    original: Evidence, claim: Claim, place: str, value: Any, expected: str
) -> None:
    moved = copy.deepcopy(fixed())
    *path, last = (key.replace("_k_=_", " k = ").replace("p_0", "p 0") for key in place.split(" "))
    at: Any = moved
    for key in path:
        at = at[key]
    assert last in at
    at[last] = value
    assert claim(Evidence(original.runs, original.compared, moved, cost())).verdict == expected


# Reverse KL of one estimator after training, in every setting.
LEVEL = [
    (rules.near_exact, "vopd", 0.002, {0.2: SUPPORTED, 0.24: REFUTED, 0.22: UNDECIDED}),
    (rules.top_k_keeps, "vopd_top_k", 0.002, {0.231: SUPPORTED, 0.26: REFUTED, 0.24: UNDECIDED}),
    # The share of the gap from the undetached baseline, at 0.27.
    (rules.stop_gradient, "opd", 0.002, {0.25: SUPPORTED, 0.275: REFUTED}),
    (rules.stop_gradient, "opd", 0.01, {0.266: UNDECIDED}),
]
LEVEL_CASES = [
    pytest.param(claim, name, level, noise, expected, id=f"{claim.__name__}, {name} {level}, {expected}")
    for claim, name, noise, levels in LEVEL
    for level, expected in levels.items()
]


@pytest.mark.parametrize(("claim", "name", "level", "noise", "expected"), LEVEL_CASES)
def test_training_decides_by_the_level_of_one_estimator(
    claim: Claim, name: str, level: float, noise: float, expected: str
) -> None:
    found = Runs(records({**LEVELS, name: level}, noise), study()["starts"], best_rates())
    assert claim(Evidence(found, [], fixed(), cost())).verdict == expected


@pytest.mark.parametrize(
    ("claim", "name", "column", "value", "expected"),
    [
        (rules.costs_no_more, "vopd", "seconds", 1.1, SUPPORTED),
        (rules.costs_no_more, "vopd", "seconds", 1.2, REFUTED),
        (rules.costs_no_more, "vopd", "extra_bytes", 1200, REFUTED),
        (rules.exact_costs_more, "full_rkl", "seconds", 1.4, REFUTED),
        (rules.exact_costs_more, "full_rkl", "extra_bytes", 1600, SUPPORTED),
        (rules.exact_costs_more, "naive full_rkl", "seconds", 9.0, REFUTED),
    ],
)
def test_costs_decide_by_one_ratio(claim: Claim, name: str, column: str, value: float, expected: str) -> None:
    moved = cost()
    next(row for row in moved["trainable"]["rows"] if row["name"] == name)[column] = value
    assert claim(Evidence(NOTHING, [], fixed(), moved)).verdict == expected


def test_every_rule_is_seen_supported_and_refuted() -> None:
    reached: dict[Claim, set[str]] = {claim: {SUPPORTED, REFUTED, UNDECIDED} for claim, _, _ in TRAINED}
    for case in (*CASES, *LEVEL_CASES):
        reached.setdefault(case.values[0], set()).add(case.values[-1])  # type: ignore[arg-type]
    rest = set(rules.CLAIMS) - {rules.costs_no_more, rules.exact_costs_more}
    assert set(reached) == rest
    # Bias by enumeration is a number without an interval.
    assert all(found >= {SUPPORTED, REFUTED} for found in reached.values())
    assert {claim for claim, found in reached.items() if UNDECIDED not in found} == {rules.wrong_samplers}


def test_a_stop_gradient_needs_a_gap() -> None:
    """Vanilla is half-way in every seed, and so is the share; but the gap itself may be none."""
    undetached = [0.30, 0.32, 0.34, 0.36]
    for value, expected in {0.01: SUPPORTED, 0.25: UNDECIDED}.items():
        vopd = [0.2, 0.2 + value, 0.22, 0.24]
        halfway = [(a + b) / 2 for a, b in zip(undetached, vopd)]
        levels = {"opd_undetached": undetached, "vopd": vopd, "opd": halfway}
        runs = [record("main", name, 3e-4, seed, 0, 0) | {"reverse_kl": [[200, [[found, 1], [found, 1]]]]}
                for name, values in levels.items() for seed, found in enumerate(values)]  # fmt: skip
        verdict = rules.stop_gradient(Evidence(Runs(runs, {}, {"main": {}}), [], fixed(), cost()))
        assert verdict.verdict == expected and verdict.parts[1].number == "50 %"


def test_a_contradiction_outweighs_all_support_and_no_part_supports_nothing() -> None:
    def verdict(*sides: int) -> str:
        return Verdict("x", "", "", "", [rules.Part("", side, "", "") for side in sides]).verdict

    assert verdict(1, 1) == SUPPORTED and verdict(1, -1, 1) == REFUTED and verdict(1, 0) == UNDECIDED
    assert verdict(0, -1) == REFUTED and verdict() == UNDECIDED


def test_a_comparison_at_the_common_rate_is_no_one_s_own(original: Evidence) -> None:
    part = original.trained("main", "vopd", "opd")
    own = next(c for c in original.compared if _names(c) == ("reverse_kl", "main", OWN_RATE, "vopd", "opd"))
    common = next(c for c in original.compared if _names(c) == ("reverse_kl", "main", COMMON_RATE, "vopd", "opd"))
    assert part.number == f"{own.difference.value:+.3f}" and own.difference != common.difference

"""The verdict of `vopd variance` follows the measured intervals: it changes where they do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from messages import told
from vopd.reporting.variance_report import variance_text, verdict
from vopd.statistics import positive_t_interval

# One number per context: what an estimator of noise 1 has there.
CONTEXTS = (0.8, 1.2, 1.0, 0.6, 1.4, 0.9, 1.1, 1.0)
USUAL = {"opd": 1.0, "vopd": 0.6, "vopd_optimal": 0.2, "rao_blackwell_teacher_top_k": 0.05, "full_rkl": 0.0}
# A multiple of CONTEXTS, or one number per context.
Noise = dict[str, Any]


def part(values: Sequence[float]) -> dict[str, float]:
    low, high = positive_t_interval(list(values))
    return {"value": sum(values) / len(values), "low": low, "high": high}


def measured(noise: Noise, *, context: float = 1.0, bias: float = 0.0) -> dict[str, Any]:
    """Results with these token parts."""
    found = {}
    for name, given in noise.items():
        values = [given * value for value in CONTEXTS] if isinstance(given, float) else given
        found[name] = {
            "token": part(values), "total": part(CONTEXTS), "token_by_context": values, "cosine": part(CONTEXTS),
            "relative_bias": {"value": bias, "low": 0.9 * bias, "high": 1.1 * bias}, "signal_to_noise": None,
        }  # fmt: skip
    return {
        "settings": {"contexts": len(CONTEXTS), "resamples": 4},
        "context": {"value": context, "low": 0.9 * context, "high": 1.1 * context},
        "estimators": found,
        "profile": {"value_hurts_share": {"value": 0.1, "low": 0.0, "high": 0.2}},
    }


def uneven(*factors: float) -> list[float]:
    return [value * factor for value, factor in zip(CONTEXTS, factors, strict=True)]


def test_the_usual_measurement_gives_the_usual_advice() -> None:
    first, second = verdict(measured(USUAL))
    assert told("opd ... vopd 0.6 [0.6, 0.6] ... vopd_optimal 0.2 ... full_rkl has none", first)
    assert told("training process ... full_rkl ... vopd_optimal ... server ... rao_blackwell_teacher_top_k", second)


def test_it_ends_the_text_of_the_terminal() -> None:
    results = measured(USUAL)
    lines = variance_text(results).splitlines()
    place = next(index for index, line in enumerate(lines) if line.startswith("Verdict"))
    assert lines[place - 1] == "" and " ".join(lines[place:]) == " ".join(verdict(results))
    assert all(len(line) <= 100 for line in lines[place:])


def test_overlapping_intervals_ask_for_more_contexts() -> None:
    """In the mean vopd has less noise than vopd_optimal here, but not in every context."""
    _, advice, undecided = verdict(measured({**USUAL, "vopd": uneven(0.1, 0.4, 0.1, 0.3, 0.1, 0.2, 0.2, 0.1)}))
    assert "or vopd_optimal when" in advice
    assert told("8 contexts ... too few ... vopd from vopd_optimal ... raise --contexts", undecided)


def test_an_estimator_with_clearly_less_noise_takes_the_place_of_the_usual_one() -> None:
    _, advice, why = verdict(measured({**USUAL, "vopd": 0.1}))
    assert "or vopd when" in advice and told("vopd has less noise than vopd_optimal ... 0.5 [0.5, 0.5]", why)
    _, advice, why = verdict(measured({**USUAL, "vopd_teacher_top_k": 0.01, "vopd_optimal": 0.001}))
    assert advice.endswith("use vopd_teacher_top_k.") and told(
        "vopd_teacher_top_k ... rao_blackwell_teacher_top_k", why
    )


def test_more_noise_and_no_clear_difference_from_the_reference_are_said() -> None:
    unclear = uneven(0.5, 1.5, 0.7, 1.2, 1.1, 0.9, 1.3, 0.8)
    first = verdict(measured({"opd": 1.0, "vopd": 2.0, "vopd_top_k": unclear}))[0]
    assert told("vopd: more noise than opd ... vopd_top_k: no clear difference from opd", first)


def test_contexts_that_make_most_of_the_variance_are_said() -> None:
    assert told("90% ... contexts ... more completions per step", verdict(measured(USUAL, context=9.0))[-1])
    assert not any("more completions" in line for line in verdict(measured(USUAL, context=1.0)))


def test_a_biased_estimator_is_named_with_its_bias_and_not_counted() -> None:
    *lines, last = verdict(measured({"opd": 1.0, "top_k_rkl": 0.0}, bias=0.25))
    assert "top_k_rkl" not in "".join(lines) and told("top_k_rkl is biased by construction ... 0.25 [0.23, 0.28]", last)
    own = {**measured({"opd": 1.0, "mine": 0.5}, bias=0.1), "biased": ["mine"]}
    assert told("mine is biased by construction", verdict(own)[-1])


@pytest.mark.parametrize("noise", [{"opd": 1.0}, {"full_rkl": 0.0}, {"vopd": 1.0, "vopd_optimal": 0.3}])
def test_few_estimators_have_a_verdict_too(noise: Noise) -> None:
    assert verdict(measured(noise))[0].startswith("Verdict: ")


def test_results_without_variances_by_context_have_none() -> None:
    results = measured(USUAL)
    del results["estimators"]["opd"]["token_by_context"]
    assert verdict(results) == []


def test_an_estimator_without_noise_here_enters_no_ratio() -> None:
    """k as large as the vocabulary: the top k is everything, and a ratio to nothing would be any number."""
    noise = {"opd": 1.0, "vopd_teacher_top_k": 0.5, "rao_blackwell_teacher_top_k": 0.0}
    results = measured(noise)
    exact = results["estimators"]["rao_blackwell_teacher_top_k"]
    exact["token"] = {"value": 0.0, "low": 0.0, "high": 0.0}
    text = " ".join(verdict(results))
    assert told("rao_blackwell_teacher_top_k has none", text) and "too few" not in text


def test_one_noisy_estimator_is_named() -> None:
    (line, *_) = verdict(measured({"vopd": 1.0, "full_rkl": 0.0}))
    assert told("full_rkl has no sampling noise ... vopd is the only", line)

"""The verdict on every claim, by rules that were committed before the runs: supported, refuted or undecided."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from studies.claims import design
from studies.claims.comparisons import COMMON_RATE, OWN_RATE, Compared, Runs, compare, share_closed
from vopd.statistics import Interval

SUPPORTED, REFUTED, UNDECIDED = "supported", "refuted", "undecided"
SETTINGS = tuple(design.ESTIMATORS)
# An enumerated squared bias below this share of the squared gradient is rounding.
ROUNDING = 1e-9
KEPT = 0.8
MARGIN = 0.01
CLOSED = 0.5
NEAR_COST, FAR_COST = 1.15, 1.5
AS_GOOD = 1.1
SHARE_THAT_HURTS = 0.01
PART_OF_GAP = 0.1
OVER = {"opd": "opd", "vopd": "vopd", "top_k": "vopd_top_k"}


@dataclass(frozen=True)
class Part:
    """One measured number: `side` is 1 if it supports the claim, -1 if it contradicts it, 0 if it does neither.

    `number` is the number alone, and `measure` what it is of; equal in every setting, so that tables put them together.
    """

    text: str
    side: int
    measure: str
    number: str


@dataclass(frozen=True)
class Verdict:
    """A claim, what supports and what refutes it, and what was measured.

    It is supported if every part supports it, refuted if any part contradicts it, and undecided otherwise.
    """

    claim: str
    statement: str
    supported_if: str
    refuted_if: str
    parts: Sequence[Part]

    @property
    def verdict(self) -> str:
        sides = [part.side for part in self.parts]
        return REFUTED if -1 in sides else SUPPORTED if sides and set(sides) == {1} else UNDECIDED


class Evidence:
    """All that the rules look at: the runs and their comparisons, the measurements at fixed parameters, the costs."""

    def __init__(
        self, runs: Runs, compared: Sequence[Compared], fixed: Mapping[str, Any], cost: Mapping[str, Any]
    ) -> None:
        self.runs, self.compared, self.fixed, self.cost = runs, compared, fixed, cost
        self._compared = {(c.metric, c.setting, c.rates, c.first, c.second): c for c in compared}

    def trained(self, setting: str, first: str, second: str) -> Part:
        """A primary comparison of reverse KL: `first` lower supports."""
        found = self._compared["reverse_kl", setting, OWN_RATE, first, second]
        return Part(f"{_said(found)}, Holm p = {found.adjusted:.2g}", -found.side, *_difference(found))

    def noise(self, setting: str, name: str, over: str) -> Interval:
        """Token part of an estimator's variance as a multiple of another's."""
        return Interval(**self.fixed[setting]["estimators"][name][f"token_over_{over}"])

    def noises(self, name: str, over: str, limit: float = 1.0) -> list[Part]:
        """The same in every setting: below the limit supports."""
        found = {setting: self.noise(setting, name, over) for setting in SETTINGS}
        return [
            Part(f"{setting}: {ratio} times the variance of {OVER[over]}", below(ratio, limit),
                 f"variance, {OVER[over]} = 1", f"{ratio.value:.2f}")
            for setting, ratio in found.items()
        ]  # fmt: skip

    def bias(self, setting: str, name: str, sampler: str = "exact") -> float:
        """Squared bias of the enumerated gradient, as a share of the squared gradient."""
        return float(self.fixed[setting]["samplers"][sampler][name]["relative_bias"])


def below(found: Interval, limit: float) -> int:
    """1 if the whole interval is below the limit, -1 if it is above, else 0."""
    return 1 if found.high < limit else -1 if found.low > limit else 0


def above(found: Interval, limit: float) -> int:
    """1 if the whole interval is above the limit, -1 if it is below, else 0."""
    return -below(found, limit)


def _said(found: Compared) -> str:
    value = found.difference
    return (
        f"{found.setting}, {found.rates}: {found.first} - {found.second} = {value.value:+.4f} [{value.low:+.4f}, "
        f"{value.high:+.4f}], lower in {found.lower_in} of {found.seeds} seeds"
    )


def _difference(found: Compared) -> tuple[str, str]:
    return f"KL, {found.first} - {found.second}", f"{found.difference.value:+.3f}"


def _percent(found: Interval) -> str:
    return f"{found.value:.0%} [{found.low:.0%}, {found.high:.0%}]"


def _share(found: Interval) -> str:
    return f"{100 * found.value:.0f} %"


def less_variance(evidence: Evidence) -> Verdict:
    biases = {setting: evidence.bias(setting, "vopd") for setting in SETTINGS}
    return Verdict(
        "a", "The value baseline lowers the gradient's variance and leaves it unbiased",
        "in every setting the variance from sampling tokens is below vanilla's (95 % interval of the ratio below 1) "
        f"and the enumerated squared bias is below {ROUNDING:g} of the squared gradient",
        "in any setting the interval is above 1 or the bias is larger",
        [*evidence.noises("vopd", "opd"),
         *(Part(f"{setting}: squared bias {bias:.1g}", 1 if bias < ROUNDING else -1, "squared bias", f"{bias:.0e}")
           for setting, bias in biases.items())],
    )  # fmt: skip


def trains_better(evidence: Evidence, first: str = "vopd", second: str = "opd") -> Verdict:
    return Verdict(
        "b1", "vOPD trains better than vanilla OPD",
        "in every setting, each at its own learning rate, lower reverse KL after Holm's correction",
        "in any setting higher after Holm's correction",
        [evidence.trained(setting, first, second) for setting in SETTINGS],
    )  # fmt: skip


def near_exact(evidence: Evidence) -> Verdict:
    shares = {name: share_closed(evidence.runs, name, OWN_RATE, "opd", "vopd", "full_rkl") for name in SETTINGS}
    return Verdict(
        "b2", "vOPD comes close to the full-vocabulary objective",
        f"in every setting vopd closes at least {CLOSED:.0%} of the distance in reverse KL from opd to full_rkl, each "
        "at its own rate (95 % interval above)",
        "in any setting the interval is below",
        [Part(f"{name}: closes {_percent(share)}", above(share, CLOSED), "distance closed", _share(share))
         for name, share in shares.items()],
    )  # fmt: skip


def top_k_keeps(evidence: Evidence) -> Verdict:
    kept = {name: Interval(**evidence.fixed[name]["estimators"]["vopd_top_k, k = 5"]["kept"]) for name in SETTINGS}
    trained = compare(evidence.runs, ("main", OWN_RATE, "vopd_top_k", "vopd"))
    return Verdict(
        "c1", "The top-k baseline keeps the gain, down to k = 5",
        f"in every setting at least {KEPT:.0%} of the value baseline's reduction of variance (95 % interval above), "
        f"and on main a reverse KL after training that is higher by less than {MARGIN:g} (95 % interval below)",
        "in any setting the interval of the kept share is below, or that of the difference above",
        [*(Part(f"{name}: keeps {_percent(share)} of the reduction", above(share, KEPT), "kept",
                _share(share)) for name, share in kept.items()),
         Part(_said(trained), below(trained.difference, MARGIN), *_difference(trained))],
    )  # fmt: skip


def top_k_objective(evidence: Evidence) -> Verdict:
    found = {
        name: Interval(**evidence.fixed[name]["estimators"]["top_k_rkl, k = 5"]["relative_bias"]) for name in SETTINGS
    }
    return Verdict(
        "c2", "The top-k objective is biased",
        "in every setting the squared bias of its gradient at k = 5 is above 0 (95 % interval)",
        "in any setting the interval is below 0.1 % of the squared gradient",
        [Part(f"{name}: squared bias {bias} of the squared gradient",
              1 if bias.low > 0 else -1 if bias.high < 1e-3 else 0, "squared bias, gradient's square = 1",
              f"{bias.value:.3f}") for name, bias in found.items()],
    )  # fmt: skip


def costs_no_more(evidence: Evidence) -> Verdict:
    ratios = _costs(evidence, "vopd", "opd")
    return Verdict(
        "d1", "The value baseline costs no more than vanilla OPD",
        f"loss and backward take at most {NEAR_COST:g} times the time and the memory of opd",
        "either takes more",
        [Part(f"{what}: {ratio:.2f} of opd's", 1 if ratio <= NEAR_COST else -1, f"{what}, opd = 1",
              f"{ratio:.2f}") for what, ratio in ratios.items()],
    )  # fmt: skip


def exact_costs_more(evidence: Evidence) -> Verdict:
    ratios, naive = _costs(evidence, "full_rkl", "vopd"), _costs(evidence, "naive full_rkl", "vopd")
    far = max(ratios.values()) >= FAR_COST
    return Verdict(
        "d2", "The value baseline costs far less than the full-vocabulary objective",
        f"loss and backward of full_rkl, in the same fused pass, take at least {FAR_COST:g} times the time or the "
        "memory of vopd",
        "both take less",
        [Part("full_rkl: " + ", ".join(f"{what} {ratio:.2f} of vopd's" for what, ratio in ratios.items())
              + "; with all logits in memory: " + ", ".join(f"{what} {ratio:.2f}" for what, ratio in naive.items()),
              1 if far else -1, "time and memory of full_rkl, vopd = 1",
              ", ".join(f"{ratio:.2f}" for ratio in ratios.values()))],
    )  # fmt: skip


def _costs(evidence: Evidence, name: str, over: str) -> dict[str, float]:
    rows = {row["name"]: row for row in evidence.cost["trainable"]["rows"]}
    return {
        what: rows[name][column] / rows[over][column]
        for what, column in (("time", "seconds"), ("memory", "extra_bytes"))
    }


def stop_gradient(evidence: Evidence) -> Verdict:
    gap = compare(evidence.runs, ("main", COMMON_RATE, "vopd", "opd_undetached"))
    share = share_closed(evidence.runs, "main", COMMON_RATE, "opd_undetached", "opd", "vopd")
    return Verdict(
        "e", "Part of the gap between vOPD and a vanilla OPD without its stop-gradient is the missing stop-gradient",
        "on main at the common rate that gap is above 0, and the stop-gradient alone closes a share of it above 0 "
        "(95 % intervals)",
        f"the gap's interval is on the other side of 0, or that of the share below {PART_OF_GAP:.0%}",
        [Part(_said(gap), below(gap.difference, 0), *_difference(gap)),
         Part(f"share of the gap that the stop-gradient closes: {_percent(share)}",
              1 if share.low > 0 else -1 if share.high < PART_OF_GAP else 0, "gap closed", _share(share))],
    )  # fmt: skip


def optimal_baseline(evidence: Evidence) -> Verdict:
    return Verdict(
        "f1", "The optimal baseline beats the paper's at the same cost",
        "in every setting the variance from sampling tokens is below the value baseline's (95 % interval of the ratio "
        "below 1), and reverse KL is lower after Holm's correction, each at its own learning rate",
        "in any setting either is significantly the other way round",
        [*evidence.noises("vopd_optimal", "vopd"),
         *(evidence.trained(setting, "vopd_optimal", "vopd") for setting in SETTINGS)],
    )  # fmt: skip


def sparse_baseline(evidence: Evidence) -> Verdict:
    return Verdict(
        "f2", "The sparse top-k baseline is as good as the paper's, from k + 1 teacher logits",
        f"in every setting at most {AS_GOOD:g} times the variance of the paper's top-k baseline at k = 5 (95 % "
        "interval below)",
        "in any setting the interval is above",
        evidence.noises("vopd_sparse, k = 5", "top_k", AS_GOOD),
    )  # fmt: skip


def rao_blackwell(evidence: Evidence) -> Verdict:
    return Verdict(
        "f3", "Rao-Blackwell on a server's top 20 beats the value baseline",
        "in every setting the variance from sampling tokens is below the value baseline's (95 % interval of the ratio "
        "below 1), and on main reverse KL is lower after Holm's correction, each at its own learning rate",
        "in any setting either is significantly the other way round",
        [*evidence.noises("rao_blackwell_teacher_top_k, k = 20", "vopd"),
         evidence.trained("main", "rao_blackwell_teacher_top_k", "vopd")],
    )  # fmt: skip


def where_it_hurts(evidence: Evidence) -> Verdict:
    shares = {name: Interval(**evidence.fixed[name]["profile"]["value_hurts_share"]) for name in SETTINGS}
    return Verdict(
        "g1", "The value baseline raises the variance at some tokens",
        f"in every setting at more than {SHARE_THAT_HURTS:.0%} of the tokens, in the logits, by its closed form (95 % "
        "interval above)",
        "in any setting the interval is below",
        [Part(f"{name}: {100 * share.value:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}] of the tokens",
              above(share, SHARE_THAT_HURTS), "share of tokens", f"{100 * share.value:.1f} %")
         for name, share in shares.items()],
    )  # fmt: skip


def gain_shrinks(evidence: Evidence) -> Verdict:
    parts = []
    for name in SETTINGS:
        along = evidence.fixed[name]["along_training"]
        change = Interval(**along["change"])
        first, last = (along["value_left"][step] for step in (0, -1))
        parts.append(Part(
            f"{name}: the value baseline leaves {first:.2f} of the variance at the start and {last:.2f} at the end, a "
            f"change of {change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]", above(change, 0),
            "variance left, end less start", f"{change.value:+.3f}",
        ))  # fmt: skip
    return Verdict(
        "g2", "The value baseline's gain shrinks as the student improves",
        "in every setting it leaves a larger part of the variance (closed form, in the logits) at the end of training "
        "than at the start (95 % interval over seeds above 0)",
        "in any setting the interval is below 0",
        parts,
    )  # fmt: skip


def wrong_samplers(evidence: Evidence) -> Verdict:
    parts = []
    for setting in SETTINGS:
        for sampler in evidence.fixed[setting]["samplers"]:
            if sampler != "exact":
                opd, value, best = (evidence.bias(setting, name, sampler) for name in ("opd", "vopd", "vopd_optimal"))
                text = f"{setting}, {sampler}: squared bias opd {opd:.2g}, vopd {value:.2g}, vopd_optimal {best:.2g}"
                least = min(value, opd)
                parts.append(
                    Part(
                        text,
                        1 if best < least else -1,
                        "squared bias, the better of opd and vopd = 1",
                        f"{best / least:.2f}",
                    )
                )
    return Verdict(
        "h", "The optimal baseline reduces the bias from a sampler that is slightly off-policy",
        "in every setting and under every sampler its enumerated squared bias is below vanilla's and the value "
        "baseline's",
        "under any sampler it is not",
        parts,
    )  # fmt: skip


CLAIMS: tuple[Callable[[Evidence], Verdict], ...] = (
    less_variance, trains_better, near_exact, top_k_keeps, top_k_objective, costs_no_more, exact_costs_more,
    stop_gradient, optimal_baseline, sparse_baseline, rao_blackwell, where_it_hurts, gain_shrinks, wrong_samplers,
)  # fmt: skip


def all_verdicts(evidence: Evidence, claims: Iterable[Callable[[Evidence], Verdict]] = CLAIMS) -> list[Verdict]:
    """Every claim's verdict, in order."""
    return [claim(evidence) for claim in claims]

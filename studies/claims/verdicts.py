"""The verdict on each claim, by rules that are code: reproduced, not reproduced, or not testable here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from studies.claims.tables import COMMON, OWN_BEST, Compared, Results
from vopd.statistics import t_interval

REPRODUCED, NOT, UNTESTABLE = "reproduced", "not reproduced", "not testable here"
# An enumerated bias below this is rounding.
_ROUNDING = 1e-9
SETTINGS = ("main", "larger", "sorting")


@dataclass(frozen=True)
class Verdict:
    """One claim: the rule that decides, the numbers it decided on, and the verdict."""

    claim: str
    statement: str
    rule: str
    numbers: Sequence[str]
    verdict: str


class Evidence:
    """All that the rules look at."""

    def __init__(
        self, results: Results, compared: Sequence[Compared], fixed: Mapping[str, Any], cost: Mapping[str, Any] | None
    ) -> None:
        self.results, self.compared, self.fixed, self.cost = results, compared, fixed, cost

    def found(self, setting: str, rates: str, first: str, second: str, metric: str = "reverse_kl") -> Compared | None:
        wanted = (setting, rates, first, second, metric)
        return next((c for c in self.compared if (c.setting, c.rates, c.first, c.second, c.metric) == wanted), None)

    def noise(self, setting: str, name: str, over: str = "opd") -> dict[str, float]:
        """Token part of an estimator's variance as a multiple of another's."""
        found: dict[str, float] = self.fixed[setting]["estimators"][name][f"token_over_{over}"]
        return found

    def bias(self, setting: str, name: str, sampler: str = "exact") -> float:
        return float(self.fixed[setting]["samplers"][sampler][name]["relative_bias"])


def _decide(good: bool) -> str:
    return REPRODUCED if good else NOT


def _ratio(found: Mapping[str, float]) -> str:
    return f"{found['value']:.3g} [{found['low']:.3g}, {found['high']:.3g}]"


def _said(entry: Compared | None, what: str) -> str:
    if entry is None:
        return f"{what}: not run"
    found, digits = entry.by_seed, 3
    return (
        f"{what}: {entry.first} - {entry.second} = {found.value:+.{digits}f} [{found.low:+.{digits}f}, "
        f"{found.high:+.{digits}f}], {entry.seeds} seeds, Holm p = {entry.holm:.2g}"
    )


def less_variance(evidence: Evidence) -> Verdict:
    ratios = {name: evidence.noise(name, "vopd") for name in SETTINGS}
    biases = {name: evidence.bias(name, "vopd") for name in SETTINGS}
    good = all(found["high"] < 1 for found in ratios.values()) and max(biases.values()) < _ROUNDING
    return Verdict(
        "a", "The value baseline lowers the gradient's variance and leaves it unbiased",
        "token part of the variance below vanilla's with 95 % confidence, and enumerated relative squared bias below "
        f"{_ROUNDING:g}, in all three settings",
        [f"{name}: variance {_ratio(ratios[name])} of vanilla's, bias {biases[name]:.1g}" for name in SETTINGS],
        _decide(good),
    )  # fmt: skip


def trains_better(evidence: Evidence) -> Verdict:
    places = [("main", COMMON), ("main", OWN_BEST), ("larger", COMMON), ("sorting", COMMON)]
    entries = [
        (metric, *place, evidence.found(*place, "vopd", "opd", metric))
        for metric in ("reverse_kl", "accuracy") for place in places
    ]  # fmt: skip
    distances = [entry for metric, *_, entry in entries if metric == "reverse_kl"]
    if any(entry is None for entry in distances[:2]):
        verdict = UNTESTABLE
    else:
        lower = [entry is not None and entry.better for entry in distances]
        verdict = _decide(lower[0] and lower[1] and not any(entry is not None and entry.worse for *_, entry in entries))
    return Verdict(
        "b1", "vOPD trains better than vanilla OPD",
        "held-out reverse KL lower after Holm's correction at the common rate and at each one's best, and nothing "
        "significantly worse in any setting",
        [_said(entry, f"{setting}, {rates}, {metric}") for metric, setting, rates, entry in entries], verdict,
    )  # fmt: skip


def near_exact(evidence: Evidence) -> Verdict:
    shares = {name: gap_share(evidence.results, name, "opd", "vopd", "full_rkl") for name in SETTINGS}
    others = {name: gap_share(evidence.results, name, "opd", "vopd_optimal", "full_rkl") for name in SETTINGS}
    known = [share for share in shares.values() if share is not None]
    return Verdict(
        "b2", "vOPD comes close to the full-vocabulary objective",
        "at the common rate vopd closes at least half of the distance in reverse KL from vanilla to full_rkl, in every "
        "setting",
        [f"{name}: vopd closes {_share(shares[name])}, vopd_optimal {_share(others[name])}" for name in SETTINGS],
        _decide(min(share[0] for share in known) >= 0.5) if known else UNTESTABLE,
    )  # fmt: skip


def gap_share(results: Results, setting: str, start: str, middle: str, end: str) -> tuple[float, float, float] | None:
    """(value, low, high) of (start - middle) / (start - end) in mean reverse KL at the common rate, over seeds.

    The interval is Student's t of the ratio's linear form.
    """
    runs = [{run["seed"]: run["reverse_kl"] for run in results.of(setting, name, results.rate(COMMON, name))}
            for name in (start, middle, end)]  # fmt: skip
    seeds = sorted(set.intersection(*(set(found) for found in runs)))
    if len(seeds) < 2:
        return None
    gaps = [(runs[0][seed] - runs[1][seed], runs[0][seed] - runs[2][seed]) for seed in seeds]
    below = sum(whole for _, whole in gaps) / len(gaps)
    if below == 0:
        return None
    value = sum(part for part, _ in gaps) / len(gaps) / below
    low, high = t_interval([value + (part - value * whole) / below for part, whole in gaps])
    return value, low, high


def _share(found: tuple[float, float, float] | None) -> str:
    return "not known" if found is None else f"{found[0]:.0%} [{found[1]:.0%}, {found[2]:.0%}]"


def top_k_keeps(evidence: Evidence) -> Verdict:
    kept = {}
    for name in SETTINGS:
        whole, part = evidence.noise(name, "vopd"), evidence.noise(name, "vopd_top_k, k = 5")
        kept[name] = (1 - part["value"]) / (1 - whole["value"])
    trained = evidence.found("main", COMMON, "vopd_top_k", "vopd")
    one = evidence.noise("main", "vopd_top_k, k = 1")
    return Verdict(
        "c1", "The top-k baseline keeps the gain, down to k = 5",
        "at k = 5 at least 80 % of the value baseline's reduction of variance in every setting, and no significantly "
        "higher reverse KL after training",
        [*(f"{name}: keeps {share:.0%} of the reduction" for name, share in kept.items()),
         f"main, k = 1: variance {_ratio(one)} of vanilla's", _said(trained, "main, common rate, reverse_kl")],
        _decide(min(kept.values()) >= 0.8 and not (trained is not None and trained.worse)),
    )  # fmt: skip


def top_k_objective(evidence: Evidence) -> Verdict:
    found = {name: evidence.fixed[name]["estimators"]["top_k_rkl, k = 5"]["relative_bias"] for name in SETTINGS}
    trained = evidence.found("main", COMMON, "top_k_rkl", "full_rkl")
    return Verdict(
        "c2", "The top-k objective is biased",
        "relative squared bias of its gradient at k = 5 above 0 with 95 % confidence in every setting",
        [*(f"{name}: squared bias {_ratio(bias)} of the gradient's square" for name, bias in found.items()),
         _said(trained, "main, common rate, reverse_kl")],
        _decide(all(bias["low"] > 0 for bias in found.values())),
    )  # fmt: skip


def costs(evidence: Evidence) -> Verdict:
    statement = "The value baseline costs no more than vanilla OPD, and far less than the full-vocabulary objective"
    rule = "loss and backward: vopd within 15 % of opd in time and memory, full_rkl at least 1.5 times vopd in one"
    if evidence.cost is None:
        return Verdict("d", statement, rule, ["not measured"], UNTESTABLE)
    rows = {row["name"]: row for row in evidence.cost["trainable"]["rows"]}
    numbers = [
        f"{name}: time {row['seconds'] / rows['opd']['seconds']:.2f}, memory "
        f"{row['extra_bytes'] / rows['opd']['extra_bytes']:.2f} of opd's" for name, row in rows.items()
    ]  # fmt: skip
    near = all(rows["vopd"][part] <= 1.15 * rows["opd"][part] for part in ("seconds", "extra_bytes"))
    far = any(rows["full_rkl"][part] >= 1.5 * rows["vopd"][part] for part in ("seconds", "extra_bytes"))
    return Verdict("d", statement, rule, numbers, _decide(near and far))


def stop_gradient(evidence: Evidence) -> Verdict:
    gap = evidence.found("main", COMMON, "vopd", "opd_undetached")
    share = gap_share(evidence.results, "main", "opd_undetached", "opd", "vopd")
    noise = {name: evidence.noise(name, "opd_undetached") for name in SETTINGS}
    known = gap is not None and gap.better and share is not None
    return Verdict(
        "e", "Part of the gap to a vanilla baseline without its stop-gradient is that missing stop-gradient",
        "testable where vopd is significantly nearer to the teacher than undetached vanilla; reproduced if the share "
        "of that gap which the stop-gradient alone closes is above 0 with 95 % confidence",
        [_said(gap, "main, common rate, reverse_kl"),
         f"share of the gap that the stop-gradient alone closes: {_share(share)}",
         *(f"{name}: undetached variance {_ratio(found)} of vanilla's" for name, found in noise.items())],
        _decide(share is not None and share[1] > 0) if known else UNTESTABLE,
    )  # fmt: skip


def optimal_baseline(evidence: Evidence) -> Verdict:
    ratios = {name: evidence.noise(name, "vopd_optimal", "vopd") for name in SETTINGS}
    trained = [
        (place, evidence.found(*place, "vopd_optimal", "vopd"))
        for place in (("main", COMMON), ("main", OWN_BEST), ("larger", COMMON), ("sorting", COMMON))
    ]
    lower = [entry is not None and entry.better for place, entry in trained if place[1] == COMMON]
    good = all(found["high"] < 1 for found in ratios.values()) and all(lower)
    return Verdict(
        "f1", "The optimal baseline beats the paper's at the same cost",
        "less variance than the value baseline with 95 % confidence and lower reverse KL after Holm's correction at "
        "the common rate, both in all three settings",
        [*(f"{name}: variance {_ratio(found)} of the value baseline's" for name, found in ratios.items()),
         *(_said(entry, f"{', '.join(place)}, reverse_kl") for place, entry in trained)],
        _decide(good),
    )  # fmt: skip


def sparse_baseline(evidence: Evidence) -> Verdict:
    ratios = {
        name: evidence.noise(name, "vopd_sparse, k = 5")["value"] / evidence.noise(name, "vopd_top_k, k = 5")["value"]
        for name in SETTINGS
    }
    trained = evidence.found("main", COMMON, "vopd_sparse", "vopd_top_k")
    return Verdict(
        "f2", "The sparse top-k baseline is as good as the paper's, from k + 1 teacher logits",
        "at k = 5 no more than 1.1 times the variance of the paper's top-k baseline in every setting, and not "
        "significantly farther from the teacher after training",
        [*(f"{name}: {ratio:.3f} of its variance" for name, ratio in ratios.items()),
         _said(trained, "main, common rate, reverse_kl")],
        _decide(max(ratios.values()) <= 1.1 and not (trained is not None and trained.worse)),
    )  # fmt: skip


def rao_blackwell(evidence: Evidence) -> Verdict:
    name = "rao_blackwell_teacher_top_k, k = 20"
    noise = {setting: evidence.noise(setting, name) for setting in SETTINGS}
    value = {setting: evidence.noise(setting, "vopd") for setting in SETTINGS}
    trained = evidence.found("main", COMMON, "rao_blackwell_teacher_top_k", "vopd")
    good = all(noise[setting]["high"] < value[setting]["low"] for setting in SETTINGS)
    return Verdict(
        "f3", "Rao-Blackwell on a server's top 20 beats the value baseline",
        "variance below the value baseline's, intervals apart, in every setting; lower reverse KL after Holm's "
        "correction at the common rate",
        [*(f"{s}: variance {_ratio(noise[s])} of vanilla's, value baseline {_ratio(value[s])}" for s in SETTINGS),
         _said(trained, "main, common rate, reverse_kl")],
        _decide(good and trained is not None and trained.better),
    )  # fmt: skip


def where_it_hurts(evidence: Evidence) -> Verdict:
    shares = {name: evidence.fixed[f"{name} along training"][0]["value_hurts_share"] for name in SETTINGS}
    return Verdict(
        "g1", "The value baseline raises the variance at some tokens",
        "share of tokens where it does (closed form, in the logits) above 0 with 95 % confidence in every setting",
        [*(f"{name}: {_percent(share)} of the tokens" for name, share in shares.items()),
         *(line for name in SETTINGS for line in _by_entropy(evidence.fixed[f"{name} along training"][0], name))],
        _decide(all(share["low"] > 0 for share in shares.values())),
    )  # fmt: skip


def _percent(found: Mapping[str, float]) -> str:
    return f"{found['value']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"


def _by_entropy(profile: Mapping[str, Any], name: str) -> list[str]:
    bins = [entry for entry in profile["by_entropy"] if entry["none"] > 0]
    worst = max(bins, key=lambda entry: entry["value"] / entry["none"])
    best = min(bins, key=lambda entry: entry["value"] / entry["none"])
    return [
        f"{name}: with it / without it {worst['value'] / worst['none']:.2f} at {worst['low']:.2g} to "
        f"{worst['high']:.2g} nats of entropy, {best['value'] / best['none']:.2f} at {best['low']:.2g} to "
        f"{best['high']:.2g}"
    ]


def left_by(profile: Mapping[str, Any], baseline: str) -> float:
    """Variance with a baseline as a multiple of that without, over all tokens of a profile."""
    bins = profile["by_position"]
    with_it, without = (sum(entry["tokens"] * entry[name] for entry in bins) for name in (baseline, "none"))
    return float(with_it / without)


def gain_shrinks(evidence: Evidence) -> Verdict:
    numbers, shrinks = [], []
    for name in SETTINGS:
        profiles = evidence.fixed[f"{name} along training"]
        value, optimal = ([left_by(profile, baseline) for profile in profiles] for baseline in ("value", "optimal"))
        shrinks.append(value[-1] > value[0])
        steps = ", ".join(str(profile["step"]) for profile in profiles)
        numbers.append(
            f"{name}, steps {steps}: value leaves {', '.join(f'{x:.2f}' for x in value)}; optimal "
            f"{', '.join(f'{x:.2f}' for x in optimal)} of the variance"
        )
    enough = all(len(evidence.fixed[f"{name} along training"]) > 1 for name in SETTINGS)
    return Verdict(
        "g2", "The value baseline's gain shrinks as the student improves",
        "closed-form variance with it over without it is larger at the end of training than at the start, in every "
        "setting", numbers, _decide(all(shrinks)) if enough else UNTESTABLE,
    )  # fmt: skip


def wrong_samplers(evidence: Evidence) -> Verdict:
    numbers, good = [], []
    for setting in SETTINGS:
        for sampler in evidence.fixed[setting]["samplers"]:
            if sampler == "exact":
                continue
            opd, value, best = (evidence.bias(setting, name, sampler) for name in ("opd", "vopd", "vopd_optimal"))
            good.append(best < value and best < opd)
            numbers.append(f"{setting}, {sampler}: squared bias opd {opd:.2g}, vopd {value:.2g}, optimal {best:.2g}")
    return Verdict(
        "h", "The optimal baseline shrinks the bias from a sampler slightly off the trainer",
        "relative squared bias in the parameters below that of vanilla and of the value baseline under every sampler, "
        "in every setting", numbers, _decide(all(good)),
    )  # fmt: skip


CLAIMS: tuple[Callable[[Evidence], Verdict], ...] = (
    less_variance, trains_better, near_exact, top_k_keeps, top_k_objective, stop_gradient, optimal_baseline,
    sparse_baseline, rao_blackwell, where_it_hurts, gain_shrinks, wrong_samplers,
)  # fmt: skip


def all_verdicts(evidence: Evidence) -> list[Verdict]:
    """Every claim's verdict in order, but for `costs`, which rests on timings."""
    return [claim(evidence) for claim in CLAIMS]

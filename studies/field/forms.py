"""What other frameworks and papers train with, as estimators of this study's own.

r = log q(y) - log p(y) is the reward of the sampled token y, S a top k, b a baseline, A the advantage. Ideas and
formulas are cited; no code of theirs is here. What a framework runs changes: the sources were read in November 2026.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from studies.claims.controls import FIXED_NEGATIVE
from vopd.estimators import (
    ESTIMATORS,
    Estimate,
    Estimator,
    GradientForm,
    Needs,
    Rows,
    policy_gradient,
    rao_blackwell,
)
from vopd.functional import Moments, bucketed_moments, optimal_baseline, value_baseline
from vopd.functional.moments import not_none

K = 20
WHOLE_VOCABULARY = 0
"""As a form's top_k: every token has a column, so that any function of the reward can be summed over all of them."""
ALPHA = 0.2
FLOOR = math.log(0.2) / 0.8
POWER = 1.0

Reward = Callable[[Tensor, Tensor], Tensor]
"""Reshaped reward f from the student's and the teacher's log-probability of the same tokens."""
BatchMean = Callable[[Tensor, Tensor], Tensor]
"""Baseline of every token of a batch, (N,), from all advantages, (N,), and the completion of each token, (N,)."""


# ---- Rao-Blackwell and what is left of it ------------------------------------------------------------------------


def _column_rewards(rows: Rows) -> Tensor:
    """r at the columns, (N, K), inside S or not."""
    return not_none(rows.support_teacher_logprobs) - rows.support_logprobs


def _plus_one(rows: Rows) -> Estimate:
    """S summed exactly, other tokens sampled, b = +1: the derivative of p log p, 1 + log p, is kept whole.

    The +1 adds up to nothing over the vocabulary, but here part of it is summed and part of it sampled.
    """
    rewards = not_none(rows.rewards)
    return rao_blackwell(rows, _column_rewards(rows), rewards, torch.ones_like(rewards))


def _without_tail(rows: Rows) -> Estimate:
    """Loss sum_S [p log(p / q) - p + q]: gradient -sum_S p r grad log p, that is b = 0, and nothing outside S."""
    probs = rows.support_logprobs.exp().masked_fill(~rows.in_support, 0)
    rewards = _column_rewards(rows)
    weighted = probs * rewards
    form = GradientForm(a=weighted.sum(-1), ids=rows.support_ids, values=-weighted)
    return Estimate(loss=(probs * (rewards.exp() - 1 - rewards)).sum(-1), form=form)


# ---- reshaped rewards --------------------------------------------------------------------------------------------


def _sign(student: Tensor, teacher: Tensor) -> Tensor:
    return (teacher - student).sign()


def _bounded(student: Tensor, teacher: Tensor) -> Tensor:
    """f = log(alpha e^r + 1 - alpha), at least log(1 - alpha): r against the mixture alpha q + (1 - alpha) p."""
    reward = teacher - student
    return torch.logaddexp(reward + math.log(ALPHA), torch.full_like(reward, math.log1p(-ALPHA)))


def _floored(student: Tensor, teacher: Tensor) -> Tensor:
    """f = max(r, log(l) / (1 - l))."""
    return (teacher - student).clamp_min(FLOOR)


def _power(student: Tensor, teacher: Tensor) -> Tensor:
    """f = q^a - p^a."""
    return (POWER * teacher).exp() - (POWER * student).exp()


def _reshaped(reward: Reward) -> Callable[[Rows], Estimate]:
    """A = f."""

    def estimate(rows: Rows) -> Estimate:
        advantages = reward(rows.student_logprobs, not_none(rows.teacher_logprobs))
        return policy_gradient(rows, advantages, torch.zeros_like(advantages))

    return estimate


def _reshaped_minus(reward: Reward, baseline: Callable[[Moments], Tensor]) -> Callable[[Rows], Estimate]:
    """A = f - b with the library's baselines, V_f = E_p[f] or b*_f = E_p[w f] / E_p[w], w = 1 - 2 p + sum p^2.

    The columns have to hold the whole vocabulary (top_k = V): then the bucket of all other tokens is empty.
    """

    def estimate(rows: Rows) -> Estimate:
        columns = reward(rows.support_logprobs, not_none(rows.support_teacher_logprobs))
        probs = rows.support_logprobs.exp().masked_fill(~rows.in_support, 0)
        none = torch.zeros_like(rows.other_prob)
        found = baseline(bucketed_moments(probs[:, 0], columns[:, 0], probs[:, 1:], columns[:, 1:], none, none, none))
        advantages = reward(rows.student_logprobs, not_none(rows.teacher_logprobs)) - found
        return policy_gradient(rows, advantages, found)

    return estimate


# ---- means of the batch, subtracted in a second pass -------------------------------------------------------------


def global_mean(advantages: Tensor, completion: Tensor) -> Tensor:
    """Mean of the advantage over all tokens of the batch, the token's own included."""
    return advantages.mean().expand_as(advantages)


def mean_of_other_tokens(advantages: Tensor, completion: Tensor) -> Tensor:
    """The same without the token itself; later tokens of its completion, which depend on it, stay in."""
    return (advantages.sum() - advantages) / (len(advantages) - 1)


def mean_of_other_completions(advantages: Tensor, completion: Tensor) -> Tensor:
    """Mean over the tokens of all other completions: nothing in it depends on the token."""
    size = int(completion.max()) + 1
    own = advantages.new_zeros(size).index_add(0, completion, advantages)[completion]
    return (advantages.sum() - own) / (len(advantages) - completion.bincount()[completion])


# ---- the rows of the table ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """A loss and how to speak of it.

    Attributes:
        estimator: the study's own, or one of vopd's.
        where: frameworks, pull requests and papers that run it.
        runs: what it is, in a reader's words.
        terms: the same in the terms of this package.
        instead: what to use instead.
        top_k: k of its support; WHOLE_VOCABULARY for V; None if it has none.
        like: name of the form whose expected gradient it shares: "full_rkl" if unbiased, its own name if it trains
            another objective.
        batch_mean: what a second pass subtracts from the advantages of the first.
        name: in the results; that of the estimator unless it has a label.
        note: what to know about its bias.
    """

    estimator: Estimator
    where: str
    runs: str
    terms: str
    instead: str
    top_k: int | None = None
    like: str = "full_rkl"
    batch_mean: BatchMean | None = None
    label: str = ""
    note: str = ""

    @property
    def name(self) -> str:
        return self.label or self.estimator.name

    def k(self, vocabulary: int) -> int | None:
        """top_k of the loss functions for a vocabulary of this size."""
        return vocabulary if self.top_k == WHOLE_VOCABULARY else self.top_k


def _of_vopd(name: str, where: str, runs: str, terms: str, instead: str, top_k: int | None = None) -> Form:
    return Form(ESTIMATORS[name], where, runs, terms, instead, top_k)


def _other_objective(name: str, reward: Reward, where: str, runs: str, terms: str, instead: str) -> Form:
    estimator = Estimator(name, runs, "sampled", Needs(), _reshaped(reward), unbiased=False)
    return Form(estimator, where, runs, terms, instead, like=name)


def _plus_one_form(support: str, where: str, instead: str) -> Form:
    needs = Needs("student_top_k") if support == "student" else Needs("teacher_top_k")
    runs = f"the {support}'s top 20 summed exactly, other tokens sampled with the + 1 of the derivative"
    estimator = Estimator(f"plus_one_{support}", runs, "top_k", needs, _plus_one)
    return Form(estimator, where, runs, "Rao-Blackwell, b = +1", instead, K)


def _bounded_form(name: str, terms: str, baseline: Callable[[Moments], Tensor]) -> Form:
    runs = f"the same, minus {terms}"
    estimate = _reshaped_minus(_bounded, baseline)
    estimator = Estimator(name, runs, "top_k", Needs("student_top_k"), estimate, unbiased=False)
    return Form(estimator, "none known", runs, f"A = f - {terms.split()[0]}", "-", WHOLE_VOCABULARY, "bounded")


ALL_ROWS = "`full_rkl` or `vopd_optimal`"
WITH_SERVER = "`rao_blackwell_teacher_top_k`"

BOUNDED = _other_objective(
    "bounded", _bounded, "NeMo-RL `proximal_teacher_alpha: 0.2` (#4011); TOP-D (arXiv 2607.04751)",
    "the log-ratio to a mixture of teacher and student", "A = f = log(0.2 e^r + 0.8)",
    "b*_f (three rows down); for reverse KL, " + ALL_ROWS,
)  # fmt: skip

FORMS = (
    _of_vopd("opd", "most frameworks, by default", "the log-ratio of the sampled token", "A = r", ALL_ROWS),
    Form(ESTIMATORS["opd"], "NeMo-RL `subtract_global_baseline: true` (#4011); slime `normalize_advantages`, which "
         "also divides by the standard deviation", "minus the mean advantage of the batch", "A = r - mean of r",
         ALL_ROWS,
         batch_mean=global_mean, label="opd_global_mean",
         note="1 - 1/N times the gradient, N tokens in the batch, and what the next row says"),
    Form(ESTIMATORS["opd"], "leave-one-out over tokens", "minus the mean over all other tokens of the batch",
         "A = r - mean of the other r", ALL_ROWS, batch_mean=mean_of_other_tokens, label="opd_other_tokens",
         note="none with fixed prefixes; in a rollout, where later tokens depend on this one, a term of order 1/N"),
    Form(ESTIMATORS["opd"], "leave-one-out over completions", "minus the mean over all other completions of the batch",
         "A = r - mean of r elsewhere", ALL_ROWS, batch_mean=mean_of_other_completions, label="opd_other_completions"),
    _of_vopd("vopd", "vOPD (arXiv 2605.07865)", "minus the mean over the vocabulary", "A = r - V", "`vopd_optimal`"),
    _of_vopd("vopd_optimal", "vopd", "minus the baseline of least variance", "A = r - b*", "-"),
    _of_vopd("rao_blackwell_teacher_top_k", "vopd", "the teacher's top 20 summed exactly, other tokens sampled",
             "Rao-Blackwell, b = r_bucket", "-", K),
    _of_vopd("rao_blackwell_top_k", "vopd", "the student's top 20 summed exactly, other tokens sampled",
             "Rao-Blackwell, b = mean reward outside", "-", K),
    _plus_one_form("teacher", "NeMo-RL #3608 (open)", WITH_SERVER + ", from the same scores"),
    _plus_one_form("student", "NeMo-RL #3584 (open)", "`rao_blackwell_top_k`"),
    Form(
        Estimator("without_tail", "generalized KL on the teacher's top 20 alone", "top_k", Needs("teacher_top_k"),
                  _without_tail, unbiased=False, samples=False),
        "MOPD (arXiv 2606.30406, Eq. 5); requested for ms-swift (#10079)",
        "the sum of p log(p/q) - p + q over the teacher's top 20", "Rao-Blackwell, b = 0, without the sampled tail",
        WITH_SERVER + ", from the same scores", K, "without_tail", note="the tail is missing",
    ),
    BOUNDED,
    Form(BOUNDED.estimator, "NeMo-RL, with `subtract_global_baseline: true` (#4011)",
         "the same, minus the mean advantage of the batch", "A = f - mean of f", "b*_f (two rows down)",
         like="bounded", batch_mean=global_mean, label="bounded_global_mean"),
    _bounded_form("bounded_value", "V_f = E_p[f]", value_baseline),
    _bounded_form("bounded_optimal", "b*_f = E_p[w f] / E_p[w]", optimal_baseline),
    _other_objective("floored", _floored, "REOPOLD (arXiv 2603.11137); l = 0.2 chosen here",
                     "the log-ratio, not below a floor", "A = max(r, log(l) / (1 - l))", ALL_ROWS),
    _other_objective("power", _power, "PowerOPD (arXiv 2606.17199); a = 1 chosen here",
                     "the difference of powers of the probabilities", "A = q^a - p^a", ALL_ROWS),
    _other_objective("sign", _sign, "TV-OPD (arXiv 2609.08341)", "the sign of the log-ratio", "A = sign(r)", ALL_ROWS),
    Form(FIXED_NEGATIVE, "a control (arXiv 2608.31046)", "the same advantage for every token", "A = -1",
         "any other row", like="fixed_negative", note="the expected gradient is 0"),
)  # fmt: skip
"""In the order of the table; opd is first."""

"""What the estimators see: per-token statistics of one pass over both models' logits.

A row is one completion token. Some tokens of the vocabulary are kept one by one (the support columns, whose first is
always the student's most likely token, "top"); the others enter through sums. Differences are d = z_s - z_t, centred
on the top token: d' = d - d_top, so that the log-normalisers of both models cancel.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal, get_args

from torch import Tensor

from vopd.errors import check_known
from vopd.functional import Moments
from vopd.functional.moments import not_none

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

SupportKind = Literal["top", "student_top_k", "teacher_top_k"]


@dataclass(frozen=True)
class Needs:
    """The statistics an estimator asks for.

    Attributes:
        support: which tokens to keep one by one.
        order: highest power of the student's probability in the sums over the other tokens: 0 for none beyond
            their mass, 1 for sum p d', 2 for sum p^2 and sum p^2 d' as well.
        full_teacher: False if the teacher is needed at the support and the sampled token only, not normalised.
    """

    support: SupportKind = "top"
    order: Literal[0, 1, 2] = 0
    full_teacher: bool = True

    def __post_init__(self) -> None:
        check_known("support of Needs", self.support, get_args(SupportKind))
        check_known("order of Needs", self.order, (0, 1, 2))


@dataclass(frozen=True)
class Batch:
    """The rows that count in the loss and all that is known of each, (N,) or (N, k).

    Attributes:
        rows: their places in the flattened inputs.
        sampled_ids: y.
        teacher_logprobs, top_k_ids, top_k_logprobs: a server's scores, None with teacher tensors.
        chosen: these ids are the student's top k, not the teacher's.
        importance: weights given by the caller.
        rollout_logprobs: log p(y) of the sampler, from which weights are computed here.
        importance_cap: largest such weight.
        extra_advantages: what the caller adds to the advantage of each sampled token.
    """

    rows: Int[Tensor, " N"]
    sampled_ids: Int[Tensor, " N"]
    teacher_logprobs: Float[Tensor, " N"] | None = None
    top_k_ids: Int[Tensor, "N k"] | None = None
    top_k_logprobs: Float[Tensor, "N k"] | None = None
    chosen: bool = False
    importance: Float[Tensor, " N"] | None = None
    rollout_logprobs: Float[Tensor, " N"] | None = None
    importance_cap: float = 2.0
    extra_advantages: Float[Tensor, " N"] | None = None

    def chunks(self, size: int) -> list[Batch]:
        """The batch cut into parts of at most ``size`` rows."""
        tensors = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        parts = {name: value.split(size) for name, value in tensors.items()}
        return [replace(self, **{name: split[i] for name, split in parts.items()}) for i in range(len(parts["rows"]))]


@dataclass(frozen=True)
class Rows:
    """Statistics of N rows; detached; float32 or wider. None marks what the caller's teacher or ``Needs`` leave out.

    Attributes:
        sampled_ids: y, (N,).
        student_logprobs: log p(y), (N,).
        teacher_logprobs: log q(y), (N,).
        sampled_difference: d'_y, (N,).
        top_reward: r_top = log q - log p at the top token, (N,).
        support_ids: (N, K), column 0 is the top token.
        in_support: (N, K) booleans: whether a column belongs to the estimator's support, each token once.
        support_logprobs: log p there, (N, K).
        support_difference: d' there, (N, K).
        support_teacher_logprobs: log q there, (N, K).
        other_prob, other_square_prob: sums of p, p^2 over tokens in no column, (N,).
        other_difference, other_square_difference: sums of p d', p^2 d' over the same, (N,).
        other_difference_square, other_square_difference_square: sums of p d'^2, p^2 d'^2, (N,), for diagnostics.
        entropy: of the student, (N,), for diagnostics.
        importance: weight of the sampled terms, (N,), 1 on-policy.
        extra_advantages: added to the advantages of the sampled terms, (N,), None for none.
    """

    sampled_ids: Int[Tensor, " N"]
    student_logprobs: Float[Tensor, " N"]
    support_ids: Int[Tensor, "N K"]
    in_support: Bool[Tensor, "N K"]
    support_logprobs: Float[Tensor, "N K"]
    importance: Float[Tensor, " N"]
    other_prob: Float[Tensor, " N"]
    extra_advantages: Float[Tensor, " N"] | None = None
    other_square_prob: Float[Tensor, " N"] | None = None
    teacher_logprobs: Float[Tensor, " N"] | None = None
    sampled_difference: Float[Tensor, " N"] | None = None
    top_reward: Float[Tensor, " N"] | None = None
    support_difference: Float[Tensor, "N K"] | None = None
    support_teacher_logprobs: Float[Tensor, "N K"] | None = None
    other_difference: Float[Tensor, " N"] | None = None
    other_square_difference: Float[Tensor, " N"] | None = None
    other_difference_square: Float[Tensor, " N"] | None = None
    other_square_difference_square: Float[Tensor, " N"] | None = None
    entropy: Float[Tensor, " N"] | None = None

    @property
    def rewards(self) -> Float[Tensor, " N"] | None:
        """r_y = log q(y) - log p(y), (N,)."""
        return None if self.teacher_logprobs is None else self.teacher_logprobs - self.student_logprobs

    def asked_for(self, needs: Needs) -> Rows:
        """The same without the sums that are there for diagnostics alone, so that an estimator sees the same rows with
        diagnostics and without."""
        return replace(
            self,
            other_square_prob=self.other_square_prob if needs.order == 2 else None,
            other_difference=self.other_difference if needs.order else None,
            other_square_difference=self.other_square_difference if needs.order == 2 else None,
            other_difference_square=None,
            other_square_difference_square=None,
            entropy=None,
        )

    def moments(self) -> Moments:
        """The moments that the full-vocabulary baselines are functions of: of the order that ``Needs`` names."""
        return self._moments

    @functools.cached_property
    def _moments(self) -> Moments:
        centred_reward = -not_none(self.other_difference)
        squares: dict[str, Tensor] = {}
        if self.other_square_prob is not None:
            squares["rest_square_prob"] = self.other_square_prob
        if self.other_square_difference is not None:
            squares["square_centred_reward"] = -self.other_square_difference
        if self.other_difference_square is not None:
            squares["centred_reward_square"] = self.other_difference_square
            squares["square_centred_reward_square"] = not_none(self.other_square_difference_square)
        top_prob = self.support_logprobs[:, 0].exp()
        others = Moments(top_prob, self.other_prob, centred_reward, top_reward=self.top_reward, **squares)
        # On a GPU every small operation counts, and there is nothing to add where only the top token is kept.
        return others if self.support_ids.shape[-1] == 1 else self._with_columns(others)

    def _with_columns(self, others: Moments) -> Moments:
        """``others`` with the columns after the top token's added, those that count."""
        counted = self.in_support[:, 1:]
        probs = self.support_logprobs[:, 1:].exp() * counted
        difference = not_none(self.support_difference)[:, 1:].masked_fill(~counted, 0)
        terms = {
            "rest_prob": probs,
            "centred_reward": -probs * difference,
            "rest_square_prob": probs.square(),
            "square_centred_reward": -probs.square() * difference,
            "centred_reward_square": probs * difference.square(),
            "square_centred_reward_square": (probs * difference).square(),
        }
        found = {name: getattr(others, name) for name in terms}
        return replace(others, **{n: v + terms[n].sum(-1) for n, v in found.items() if v is not None})


@dataclass(frozen=True)
class GradientForm:
    """The gradient of a token loss in the student's logits: a p + b p d' + values at ids.

    Attributes:
        a: (N,).
        b: (N,), or None for 0.
        ids: (N, J), may repeat: values add up.
        values: (N, J).
    """

    a: Float[Tensor, " N"]
    ids: Int[Tensor, "N J"]
    values: Float[Tensor, "N J"]
    b: Float[Tensor, " N"] | None = None


@dataclass(frozen=True)
class Estimate:
    """What an estimator returns for N rows: the token losses, their gradient form, and what it
    subtracted from the reward."""

    loss: Float[Tensor, " N"]
    form: GradientForm
    baseline: Float[Tensor, " N"] | None = None
    advantages: Float[Tensor, " N"] | None = None

    def with_baseline(self, baseline: Float[Tensor, " N"]) -> Estimate:
        """The same with the baseline to report, (N,)."""
        return replace(self, baseline=baseline)

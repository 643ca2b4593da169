"""The input and output of an estimator: per-token statistics of both models' logits, and a gradient.

A row is one completion token. Statistics of some tokens of the vocabulary are kept individually, in columns: first the
student's most likely token ("top"), then the support. All other tokens enter through sums. d = z_s - z_t is the
difference of student and teacher logits, and d' = d - d_top is centred on the top token, so that the log-normalizers of
both models cancel.
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
    """The statistics that an estimator requests.

    Attributes:
        support: the tokens with their own columns: only the student's most likely one ("top"), the student's top k, or
            the teacher's top k.
        order: highest power of the student's probability p in the sums over all other tokens: 0 for sum p only, 1 also
            for sum p d', 2 also for sum p^2 and sum p^2 d'.
        full_teacher: False if the teacher is needed only at the support and the sampled token, without its normalizer.
    """

    support: SupportKind = "top"
    order: Literal[0, 1, 2] = 0
    full_teacher: bool = True

    def __post_init__(self) -> None:
        check_known("support of Needs", self.support, get_args(SupportKind))
        check_known("order of Needs", self.order, (0, 1, 2))


@dataclass(frozen=True)
class Batch:
    """The tokens in the loss and the per-token inputs, (N,) or (N, k).

    Attributes:
        rows: positions of the tokens in the flattened inputs.
        sampled_ids: y.
        teacher_logprobs: log q(y) from a server; None with teacher tensors.
        top_k_ids: ids of a server's top k.
        top_k_logprobs: log q of these ids.
        chosen: whether these ids are the student's top k, not the teacher's.
        importance: importance weights given by the caller.
        rollout_logprobs: log p(y) reported by the sampler, from which importance weights are computed.
        importance_cap: largest weight computed from ``rollout_logprobs``.
        extra_advantages: added to the advantage of each sampled token.
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
        """Split the batch into parts of at most ``size`` rows."""
        tensors = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        parts = {name: value.split(size) for name, value in tensors.items()}
        return [replace(self, **{name: split[i] for name, split in parts.items()}) for i in range(len(parts["rows"]))]


@dataclass(frozen=True)
class Rows:
    """Statistics of N tokens, which an estimator reads: detached, float32 or wider, log-probabilities in nats.

    A field is None if ``Needs`` does not request it or the teacher does not provide it.

    Attributes:
        sampled_ids: y, (N,).
        student_logprobs: log p(y), (N,).
        support_ids: ids of the columns, (N, K); column 0 is the top token.
        in_support: (N, K), booleans: whether a column belongs to the estimator's support; each token counts once.
        support_logprobs: log p of the columns, (N, K).
        importance: importance weight of the sampled terms, (N,); 1 on-policy.
        other_prob: sum of p over the tokens in no column, (N,).
        extra_advantages: added to the advantages of the sampled terms, (N,); None without any.
        other_square_prob: sum of p^2 over the tokens in no column, (N,).
        teacher_logprobs: log q(y), (N,).
        sampled_difference: d'_y, (N,).
        top_reward: r_top = log q - log p of the top token, (N,).
        support_difference: d' of the columns, (N, K).
        support_teacher_logprobs: log q of the columns, (N, K).
        other_difference: sum of p d' over the tokens in no column, (N,).
        other_square_difference: sum of p^2 d' over the same tokens, (N,).
        other_difference_square: sum of p d'^2, (N,), for diagnostics.
        other_square_difference_square: sum of p^2 d'^2, (N,), for diagnostics.
        entropy: entropy of the student, (N,), for diagnostics.
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
        """r_y = log q(y) - log p(y), (N,), nats."""
        return None if self.teacher_logprobs is None else self.teacher_logprobs - self.student_logprobs

    def asked_for(self, needs: Needs) -> Rows:
        """Return the rows without what only diagnostics compute, so that an estimator always sees the same fields."""
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
        """Return the moments from which full-vocabulary baselines are computed, up to the order in ``Needs``.

        Raises:
            ConfigurationError: ``Needs`` does not request them.
        """
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
        # Every small operation takes time on a GPU, and there is nothing to add if the top token is the only column.
        return others if self.support_ids.shape[-1] == 1 else self._with_columns(others)

    def _with_columns(self, others: Moments) -> Moments:
        """Return ``others`` plus the columns in the support, except the top token's."""
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
    """The gradient of the token losses with respect to the student's logits: a p + b p d' + values at ids.

    Attributes:
        a: factor of p, (N,).
        ids: ids with an extra term, (N, J); values of repeated ids are added.
        values: the extra terms, (N, J).
        b: factor of p d', (N,); None for 0.
    """

    a: Float[Tensor, " N"]
    ids: Int[Tensor, "N J"]
    values: Float[Tensor, "N J"]
    b: Float[Tensor, " N"] | None = None


@dataclass(frozen=True)
class Estimate:
    """What an estimator returns for N tokens.

    Attributes:
        loss: token losses, (N,).
        form: their gradient with respect to the student's logits.
        baseline: b, (N,), nats, for reports; None without one.
        advantages: r_y - b, (N,), nats, for reports; None without any.
    """

    loss: Float[Tensor, " N"]
    form: GradientForm
    baseline: Float[Tensor, " N"] | None = None
    advantages: Float[Tensor, " N"] | None = None

    def with_baseline(self, baseline: Float[Tensor, " N"]) -> Estimate:
        """Return the estimate with this baseline, (N,), for reports."""
        return replace(self, baseline=baseline)

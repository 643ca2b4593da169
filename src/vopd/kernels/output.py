"""What a pass computes of every token, from a chunk of rows to what the loss functions return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


class Variance(NamedTuple):
    """Closed-form logit-space variance of the token gradient under three baselines, per token, nats^2."""

    none: Float[Tensor, "*tokens"]
    value: Float[Tensor, "*tokens"]
    optimal: Float[Tensor, "*tokens"]


@dataclass(frozen=True)
class DistillationOutput:
    """A loss with gradient, and what it was made of: detached, shaped like the completion ids, 0 where masked out.

    None marks what the estimator did not compute; exact and sampled quantities never share a name. Inside a pass the
    same class holds the rows of a chunk, (N,) each, with ``loss`` the token losses.

    Attributes:
        loss: sum of the token losses over the normaliser, a scalar.
        student_logprobs: log p(y), nats.
        teacher_logprobs: log q(y), nats.
        rewards: log q(y) - log p(y).
        baseline: b.
        advantages: r_y - b, before importance weights and without extra advantages.
        importance_weights: w as applied, 1 where none were given.
        reverse_kl: exact KL(p || q).
        entropy: of the student (with diagnostics).
        variance: under no baseline, the value and the optimal one (with diagnostics and full teacher rows).
    """

    loss: Float[Tensor, " ..."]
    student_logprobs: Float[Tensor, "*tokens"]
    importance_weights: Float[Tensor, "*tokens"]
    teacher_logprobs: Float[Tensor, "*tokens"] | None = None
    rewards: Float[Tensor, "*tokens"] | None = None
    baseline: Float[Tensor, "*tokens"] | None = None
    advantages: Float[Tensor, "*tokens"] | None = None
    reverse_kl: Float[Tensor, "*tokens"] | None = None
    entropy: Float[Tensor, "*tokens"] | None = None
    variance: Variance | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> DistillationOutput:
        """Every tensor changed; None stays None."""
        return self.join([self], lambda parts: change(parts[0]))

    @classmethod
    def join(cls, outputs: Sequence[DistillationOutput], how: Callable[[list[Tensor]], Tensor]) -> DistillationOutput:
        """Several as one, field by field: ``torch.cat`` of chunks, or their sum; None where one of them has none."""

        def joined(values: list[Any]) -> Any:
            if any(value is None for value in values):
                return None
            if isinstance(values[0], Variance):
                return Variance(*(how(list(column)) for column in zip(*values)))
            return how(values)

        return cls(**{field.name: joined([getattr(one, field.name) for one in outputs]) for field in fields(cls)})

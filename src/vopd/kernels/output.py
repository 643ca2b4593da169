"""What the loss functions return: a loss, and the per-token quantities behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


class Variance(NamedTuple):
    """Closed-form variance of the token gradient in logit space, per token, in nats^2.

    Attributes:
        none: without a baseline.
        value: with the value baseline.
        optimal: with the optimal baseline.
    """

    none: Float[Tensor, "*tokens"]
    value: Float[Tensor, "*tokens"]
    optimal: Float[Tensor, "*tokens"]


@dataclass(frozen=True)
class DistillationOutput:
    """A loss, and the per-token quantities behind it.

    The loss has a gradient. All other tensors are detached, have the shape of the completion ids, and are 0 outside the
    mask. A field is None if the estimator did not compute it. Exact and sampled quantities never share a name. Inside a
    pass the same class contains the rows of a chunk, (N,) each, with ``loss`` the token losses.

    Attributes:
        loss: sum of the token losses divided by the normalizer, a scalar.
        student_logprobs: log p(y), nats.
        importance_weights: w as applied; 1 if none were given.
        teacher_logprobs: log q(y), nats.
        rewards: log q(y) - log p(y), nats.
        baseline: b, nats.
        advantages: r_y - b, nats, before importance weights and without extra advantages.
        reverse_kl: exact KL(p || q), nats.
        entropy: entropy of the student, nats (with diagnostics).
        variance: gradient variance without a baseline, with the value and with the optimal baseline (with diagnostics
            and the teacher's full distribution).
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
        """Return the output with `change` applied to every tensor; None stays None."""
        return self.join([self], lambda parts: change(parts[0]))

    @classmethod
    def join(cls, outputs: Sequence[DistillationOutput], how: Callable[[list[Tensor]], Tensor]) -> DistillationOutput:
        """Combine outputs field by field with `how`, such as ``torch.cat``; a field is None if it is None in any."""

        def joined(values: list[Any]) -> Any:
            if any(value is None for value in values):
                return None
            if isinstance(values[0], Variance):
                return Variance(*(how(list(column)) for column in zip(*values)))
            return how(values)

        return cls(**{field.name: joined([getattr(one, field.name) for one in outputs]) for field in fields(cls)})

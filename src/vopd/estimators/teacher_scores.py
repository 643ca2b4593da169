"""What a teacher can tell of a completion, and its scores where it is not in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int

ScoreKind = Literal["sampled", "top_k", "chosen", "full"]
"""What a teacher can give at each position of a completion: the log-probability of the ``sampled`` token; those of
its own ``top_k``; those of ids ``chosen`` by the student, such as the student's top k; its ``full`` row."""

EVERY_KIND: frozenset[ScoreKind] = frozenset({"sampled", "top_k", "chosen", "full"})
"""What a teacher in this process gives."""


@dataclass(frozen=True)
class TopKScores:
    """A teacher's log-probabilities at the sampled tokens and at its own k most likely ones.

    The support must not depend on the sampled token: a server that appends the sampled token's entry to its top k
    must have it removed, or every baseline built on it is biased. The scores must be taken at the temperature of the
    rollout, since a truncated row cannot be renormalised to another one.

    Attributes:
        sampled_logprobs: log q(y), (B, T) or (N,), nats.
        top_k_ids: the teacher's k most likely tokens, distinct, (B, T, k) or (N, k); None if not asked for.
        top_k_logprobs: log q there, same shape; -inf marks an absent entry, whose id is ignored.
        chosen: ``top_k_ids`` are the student's k most likely tokens instead. Estimators that read the teacher at these
            ids alone take scores that are off by a constant a position.
    """

    sampled_logprobs: Float[Tensor, "*tokens"]
    top_k_ids: Int[Tensor, "*tokens k"] | None = None
    top_k_logprobs: Float[Tensor, "*tokens k"] | None = None
    chosen: bool = False

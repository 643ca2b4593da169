"""The kinds of scores that a teacher provides, and the scores of a teacher server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int

ScoreKind = Literal["sampled", "top_k", "chosen", "full"]
"""What a teacher can provide at each position of a completion: log-probabilities of the ``sampled`` token, of its own
``top_k``, of ids ``chosen`` by the student (such as the student's top k), or of the ``full`` vocabulary."""

EVERY_KIND: frozenset[ScoreKind] = frozenset({"sampled", "top_k", "chosen", "full"})
"""What follows from full rows: of a teacher in the training process, or from hidden states of a server."""


@dataclass(frozen=True)
class TopKScores:
    """A teacher's log-probabilities of the sampled tokens and of its own k most likely tokens.

    The top k must not depend on the sampled token: if a server appends the sampled token to its top k, remove that
    entry, or every baseline computed from it is biased. Scores must be computed at the temperature of the rollout: a
    truncated distribution cannot be converted to another temperature.

    Attributes:
        sampled_logprobs: log q(y), (B, T) or (N,), nats.
        top_k_ids: the teacher's k most likely tokens, distinct, (B, T, k) or (N, k); None if not requested.
        top_k_logprobs: log q of these tokens, same shape, nats; -inf marks a missing entry, whose id is ignored.
        chosen: whether ``top_k_ids`` are the student's k most likely tokens instead. For estimators that read the
            teacher at these ids only, scores may then be off by a constant per position.
    """

    sampled_logprobs: Float[Tensor, "*tokens"]
    top_k_ids: Int[Tensor, "*tokens k"] | None = None
    top_k_logprobs: Float[Tensor, "*tokens k"] | None = None
    chosen: bool = False

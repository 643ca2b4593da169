"""What is asked of a teacher server and what it answers, whichever engine serves the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# A log-probability is at most 0, but a server that rounds the normalizer can return slightly more.
ABOVE_ZERO = 1e-3


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        path: of the endpoint.
        body: sent as JSON; None for a GET request.
        room: most bytes of a binary response, which is read into a buffer of this size; None if JSON is expected.
    """

    path: str
    body: dict[str, Any] | None = None
    room: int | None = None


@dataclass(frozen=True)
class Binary:
    """A binary response.

    Attributes:
        metadata: what the server says about it, parsed JSON.
        content: the bytes.
    """

    metadata: Any
    content: memoryview


class BadAnswer(Exception):
    """No response, or an unusable one, with the reason. A retry may get a better one.

    Attributes:
        status: HTTP status of the response; 0 if there is none.
        wait: seconds that the server asks to wait before the retry.
    """

    def __init__(self, reason: str, status: int = 0, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.status, self.wait = status, wait


@dataclass(frozen=True)
class Question:
    """One completion to score.

    Attributes:
        ids: prompt and completion.
        start: length of the prompt.
        top_k: number of the teacher's most likely tokens to return; 0 for the sampled token only.
        chosen: instead, ids to score at each completion token, the sampled one last, (T, J).
        temperature: temperature requested from the server; the preflight checks whether it is applied.
    """

    ids: tuple[int, ...]
    start: int
    top_k: int = 0
    chosen: tuple[tuple[int, ...], ...] | None = None
    temperature: float = 1.0


@dataclass(frozen=True)
class Answer:
    """Scores of one completion, float32.

    Attributes:
        sampled: log q(y), (T,).
        top_k_ids: (T, k).
        top_k_logprobs: (T, k), -inf where absent.
    """

    sampled: Tensor
    top_k_ids: Tensor
    top_k_logprobs: Tensor

    @classmethod
    def of(
        cls, sampled: Sequence[float], top: Sequence[Mapping[int, float]], top_k: int, vocab_size: int | None
    ) -> Answer:
        """Scores of sampled tokens, and the most likely ids at each, in order; ids from `vocab_size` on are removed."""
        kept = [[pair for pair in row.items() if vocab_size is None or pair[0] < vocab_size] for row in top]
        rows, shape = [row + [(0, -math.inf)] * (top_k - len(row)) for row in kept], (len(sampled), top_k)
        return cls(
            torch.tensor(sampled, dtype=torch.float32),
            torch.tensor([[token for token, _ in row] for row in rows], dtype=torch.long).reshape(shape),
            torch.tensor([[value for _, value in row] for row in rows], dtype=torch.float32).reshape(shape),
        )


@dataclass(frozen=True)
class StatesQuestion:
    """One completion whose last hidden states are wanted: those that predict its tokens.

    Attributes:
        ids: prompt and completion.
        start: length of the prompt, at least 1.
        dtype: of the numbers on the way.
        width: numbers of a state, as the teacher's output head has columns; None if not known.
    """

    ids: tuple[int, ...]
    start: int
    dtype: torch.dtype = torch.bfloat16
    width: int | None = None


@dataclass(frozen=True)
class Continuation:
    """What a server wrote after a prompt.

    Attributes:
        ids: of the tokens, at least one.
        end_id: the id that ended it; None if it reached the length limit.
    """

    ids: tuple[int, ...]
    end_id: int | None


def checked_score(value: Any) -> float:
    """A log-probability, at most 0; raises BadAnswer if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadAnswer(f"a score is {value}, not finite")
    if value > ABOVE_ZERO:
        raise BadAnswer(f"a log-probability is {value}, above 0")
    return min(float(value), 0.0)

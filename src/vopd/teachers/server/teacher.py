"""The teacher on a server: one prefill request per completion, scored while the student computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from vopd.errors import TeacherServerError
from vopd.estimators.teacher_scores import ScoreKind, TopKScores

from ..base import Rollouts, Scored, States
from .client import ServedModel
from .vllm import Answer, Question

T = TypeVar("T")


@dataclass(eq=False)
class ServerTeacher:
    """``Teacher`` on servers, which return scores of some ids instead of the full distribution.

    Attributes:
        model: the model on its servers.
        need: scores to request: of the sampled token, of the teacher's top k, or of ids chosen by the student.
        gives: the kinds of scores that the servers were found to provide.
        top_k: number of tokens per position; 0 with "sampled".
        temperature: temperature of the rollout, requested from a server that is known to apply it. Scores of chosen
            ids are divided by it on this side instead: estimators that use them need no normalizer.
        drop: leave a completion without usable scores out of the loss, instead of ending the run.
        check: called in the background with every generated batch; raises TeacherServerError if a server's weights
            have changed.
        positions: longest sequence that the servers score; None if they do not report it.
    """

    model: ServedModel
    need: ScoreKind
    gives: frozenset[ScoreKind]
    top_k: int
    temperature: float
    drop: bool
    check: Callable[[], None]
    positions: int | None = None
    _checked: Future[None] | None = field(default=None, init=False)
    _asked: dict[int, Future[Answer]] = field(default_factory=dict, init=False)
    _dropped: int = field(default=0, init=False)
    _reported: dict[str, float] = field(default_factory=dict, init=False)

    def begin(self, rollouts: Rollouts) -> None:
        """Request the scores of every row, unless the student must choose the ids first."""
        self._raise_checked()
        self._checked = self.model.servers.background(self.check)
        if self.need != "chosen" and rollouts.rows is not None:
            self._asked.update(zip(rollouts.rows.tolist(), self._ask(rollouts)))

    def settle(self, rollouts: Rollouts) -> Tensor | None:
        """With ``drop``, wait for all scores and return which rows got them."""
        if not self.drop or rollouts.rows is None:
            return None
        self._raise_checked()
        failed = [_failed(self._asked[row]) for row in rollouts.rows.tolist()]
        self._dropped += sum(failed)
        return ~torch.tensor(failed, dtype=torch.bool)

    def score(self, rollouts: Rollouts, student: States) -> list[Scored]:
        """Scores of the micro-batch. Dropped rows are zeros, which the mask keeps out of the loss."""
        if self.need == "chosen" or rollouts.rows is None:
            futures = self._ask(rollouts, student)
        else:
            futures = [self._asked.pop(row) for row in rollouts.rows.tolist()]
        dropped = [self.drop and _failed(future) for future in futures]
        answers = [None if out else self._result(future) for future, out in zip(futures, dropped)]
        self._raise_checked()
        device = student.head.weight.device
        scores = self._batch(answers, rollouts.completion_ids.size(1), device)
        return [Scored(scores, mask=~torch.tensor(dropped, device=device).unsqueeze(-1) if any(dropped) else None)]

    def metrics(self) -> dict[str, float]:
        """Requests, retries, dropped rows and bytes of this process since the last call."""
        counts = {**self.model.servers.counts, "dropped_rows": float(self._dropped)}
        found = {f"teacher/{name}": count - self._reported.get(name, 0.0) for name, count in counts.items()}
        self._reported = counts
        return found

    def _raise_checked(self) -> None:
        """Raise what the last check of the servers found."""
        checked, self._checked = self._checked, None
        if checked is not None:
            self._result(checked)

    def _result(self, future: Future[T]) -> T:
        """The future's result. An error ends the run, so the other requests are cancelled."""
        try:
            return future.result()
        except TeacherServerError as error:
            self.model.servers.close()
            raise TeacherServerError(
                f"{error}; once the server is fixed, continue from the last checkpoint with --resume"
            ) from error

    def _ask(self, rollouts: Rollouts, student: States | None = None) -> list[Future[Answer]]:
        """Request the scores of every row; of ids that the student chooses, if those are needed."""
        chosen = self._chosen(rollouts, student) if student is not None and self.need == "chosen" else None
        futures = []
        for row, (prompt, completion) in enumerate(rollouts.unpadded()):
            question = Question(
                ids=(*prompt, *completion),
                start=len(prompt),
                top_k=self.top_k,
                chosen=None if chosen is None else tuple(map(tuple, chosen[row, : len(completion)].tolist())),
                temperature=1.0 if self.need == "chosen" else self.temperature,
            )
            futures.append(self.model.servers.background(partial(self.model.score, question)))
        return futures

    def _chosen(self, rollouts: Rollouts, student: States) -> Tensor:
        """The student's top k at every position and the sampled token after them, (B, T, k + 1).

        Computed in the dtype of the hidden states: rounding may select other ids than the exact top k, but they still
        depend only on the state. A positive logit scale and a soft cap do not change the order.
        """
        rows = student.hidden.detach()
        head = student.head.detach().map(lambda part: part[: self.model.vocab_size].to(rows.dtype))
        # [T, V] logits at a time, as the loss's chunks are.
        top = torch.stack([linear(row, head.weight, head.bias).topk(self.top_k, dim=-1).indices for row in rows])
        return torch.cat([top, rollouts.completion_ids.to(top.device).unsqueeze(-1)], dim=-1)

    def _batch(self, answers: list[Answer | None], length: int, device: torch.device) -> TopKScores:
        """Responses as one batch; 0 on padding, where no entry of the top k is present."""
        sampled = torch.zeros(len(answers), length)
        ids = torch.zeros(len(answers), length, self.top_k, dtype=torch.long)
        logprobs = torch.full((len(answers), length, self.top_k), -torch.inf)
        for row, answer in enumerate(answers):
            if answer is not None:
                tokens = len(answer.sampled)
                sampled[row, :tokens] = answer.sampled
                ids[row, :tokens] = answer.top_k_ids
                logprobs[row, :tokens] = answer.top_k_logprobs
        if self.need == "sampled":
            return TopKScores(sampled.to(device))
        if self.need == "chosen":
            sampled, logprobs = sampled / self.temperature, logprobs / self.temperature
        return TopKScores(sampled.to(device), ids.to(device), logprobs.to(device), chosen=self.need == "chosen")


def _failed(future: Future[Answer]) -> bool:
    """Whether the servers gave no usable response; waits until that is known, and raises any other error."""
    error = future.exception()
    if error is not None and not isinstance(error, TeacherServerError):
        raise error
    return error is not None

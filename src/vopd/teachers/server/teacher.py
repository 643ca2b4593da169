"""A teacher on a server: one prefill request per completion, answered while the student computes."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from vopd.errors import TeacherServerError
from vopd.estimators.teacher_scores import EVERY_KIND, ScoreKind, TopKScores
from vopd.kernels import Head
from vopd.models import States

from ..base import Rollouts, Scored, Teacher
from .questions import Answer, Question, StatesQuestion
from .served import ServedModel

T = TypeVar("T")
Result = TypeVar("Result")


class ServerTeacher(Teacher, Generic[T]):
    """``Teacher`` on servers. What they are asked for, and what becomes of an answer T, is left to subclasses.

    Args:
        model: the model on its servers.
        gives: the kinds of scores that the servers were found to provide.
        drop: leave a completion without a usable answer out of the loss, instead of ending the run.
        check: called in the background with every generated batch, and again where a request of it failed; raises
            TeacherServerError if a server's weights have changed.
        positions: longest sequence that the servers score; None if they do not report it.
    """

    waits_for_student = False
    """Whether requests can be sent only after the student's forward pass."""

    def __init__(
        self,
        model: ServedModel,
        gives: frozenset[ScoreKind],
        *,
        drop: bool,
        check: Callable[[], None],
        positions: int | None = None,
    ) -> None:
        self.model, self.drop, self.check, self.positions = model, drop, check, positions
        self._gives = gives
        self._checked: Future[None] | None = None
        self._checked_at = 0.0
        self._asked: dict[int, Future[T]] = {}
        self._dropped = 0
        self._reported: dict[str, float] = {}

    @abstractmethod
    def _questions(self, rollouts: Rollouts, student: States | None) -> list[Callable[[], T]]:
        """What gets the answer of each row; the student's states are given where the requests wait for them."""

    @abstractmethod
    def _batch(self, answers: Sequence[T | None], tokens: int, head: Head) -> States | TopKScores:
        """Answers as one batch with so many tokens, on the device of the student's head; None is a dropped row."""

    @property
    def gives(self) -> frozenset[ScoreKind]:
        """The kinds of scores that the servers were found to provide."""
        return self._gives

    def begin(self, rollouts: Rollouts) -> None:
        """Send a request for every row, unless the student must choose the ids first."""
        self._raise_checked()
        self._begin_check()
        if not self.waits_for_student and rollouts.rows is not None:
            self._asked.update(zip(rollouts.rows.tolist(), self._ask(rollouts)))

    def settle(self, rollouts: Rollouts) -> Tensor | None:
        """With ``drop``, wait for all answers and return which rows got them."""
        if not self.drop or rollouts.rows is None:
            return None
        self._raise_checked()
        failed = [_failed(self._asked[row]) for row in rollouts.rows.tolist()]
        self._dropped += sum(failed)
        return ~torch.tensor(failed, dtype=torch.bool)

    def score(self, rollouts: Rollouts, student: States) -> list[Scored]:
        """Scores of the micro-batch; of rows that ``settle`` has left out of the loss, zeros."""
        answers: list[T | None]
        if self.waits_for_student or rollouts.rows is None:
            answers = [self._result(future) for future in self._ask(rollouts, student)]
        else:
            asked = [self._asked.pop(row) for row in rollouts.rows.tolist()]
            answers = [None if self.drop and _failed(future) else self._result(future) for future in asked]
        self._raise_checked()
        if self.model.servers.failed_since(self._checked_at):  # it may have come back with other weights
            self._begin_check()
            self._raise_checked()
        return [Scored(self._batch(answers, rollouts.completion_ids.size(1), student.head))]

    def metrics(self) -> dict[str, float]:
        """Requests, retries, dropped rows and bytes of this process since the last call."""
        counts = {**self.model.servers.counts, "dropped_rows": float(self._dropped)}
        found = {f"teacher/{name}": count - self._reported.get(name, 0.0) for name, count in counts.items()}
        self._reported = counts
        return found

    def _ask(self, rollouts: Rollouts, student: States | None = None) -> list[Future[T]]:
        return [self.model.servers.background(question) for question in self._questions(rollouts, student)]

    def _begin_check(self) -> None:
        self._checked_at, self._checked = time.monotonic(), self.model.servers.background(self.check)

    def _raise_checked(self) -> None:
        """Raise what the last check of the servers found."""
        checked, self._checked = self._checked, None
        if checked is not None:
            self._result(checked)

    def _result(self, future: Future[Result]) -> Result:
        """The future's result. An error ends the run, so the other requests are cancelled."""
        try:
            return future.result()
        except TeacherServerError as error:
            self.model.servers.close()
            raise TeacherServerError(
                f"{error}; once the server is fixed, continue from the last checkpoint with --resume"
            ) from error


class ServerScores(ServerTeacher[Answer]):
    """Scores of some ids at every token, instead of the full distribution.

    Args:
        model: the model on its servers.
        need: scores to request: of the sampled token, of the teacher's top k, or of ids chosen by the student.
        top_k: number of tokens per position; 0 with "sampled".
        temperature: temperature of the rollout, requested from a server that is known to apply it. Scores of chosen
            ids are divided by it on this side instead: estimators that use them need no normalizer.
        drop, check, positions: see ``ServerTeacher``.
    """

    def __init__(
        self,
        model: ServedModel,
        need: ScoreKind,
        top_k: int,
        temperature: float,
        *,
        drop: bool,
        check: Callable[[], None],
        positions: int | None = None,
    ) -> None:
        super().__init__(model, frozenset({"sampled", need}), drop=drop, check=check, positions=positions)
        self.need, self.top_k, self.temperature = need, top_k, temperature
        self.waits_for_student = need == "chosen"

    def _questions(self, rollouts: Rollouts, student: States | None) -> list[Callable[[], Answer]]:
        chosen = self._chosen(rollouts, student) if student is not None and self.need == "chosen" else None
        return [
            partial(
                self.model.score,
                Question(
                    ids=(*prompt, *completion),
                    start=len(prompt),
                    top_k=self.top_k,
                    chosen=None if chosen is None else tuple(map(tuple, chosen[row, : len(completion)].tolist())),
                    temperature=1.0 if self.need == "chosen" else self.temperature,
                ),
            )
            for row, (prompt, completion) in enumerate(rollouts.unpadded())
        ]

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

    def _batch(self, answers: Sequence[Answer | None], tokens: int, head: Head) -> TopKScores:
        """0 on padding, where no entry of the top k is present."""
        sampled = torch.zeros(len(answers), tokens)
        ids = torch.zeros(len(answers), tokens, self.top_k, dtype=torch.long)
        logprobs = torch.full((len(answers), tokens, self.top_k), -torch.inf)
        for row, answer in enumerate(answers):
            if answer is not None:
                count = len(answer.sampled)
                sampled[row, :count] = answer.sampled
                ids[row, :count] = answer.top_k_ids
                logprobs[row, :count] = answer.top_k_logprobs
        device = head.device
        if self.need == "sampled":
            return TopKScores(sampled.to(device))
        if self.need == "chosen":
            sampled, logprobs = sampled / self.temperature, logprobs / self.temperature
        return TopKScores(sampled.to(device), ids.to(device), logprobs.to(device), chosen=self.need == "chosen")


class ServerStates(ServerTeacher[Tensor]):
    """Last hidden states of every token; with the teacher's output head, which is here, the full distribution.

    Args:
        model: the model on its servers.
        head: the teacher's output head, where it stays between losses.
        dtype: of the states on the way.
        drop, check, positions: see ``ServerTeacher``.
    """

    def __init__(
        self,
        model: ServedModel,
        head: Head,
        dtype: torch.dtype,
        *,
        drop: bool,
        check: Callable[[], None],
        positions: int | None = None,
    ) -> None:
        super().__init__(model, EVERY_KIND, drop=drop, check=check, positions=positions)
        self.head, self.dtype = head, dtype

    def _questions(self, rollouts: Rollouts, student: States | None) -> list[Callable[[], Tensor]]:
        width = self.head.weight.size(1)
        return [
            partial(self.model.states, StatesQuestion((*prompt, *completion), len(prompt), self.dtype, width))
            for prompt, completion in rollouts.unpadded()
        ]

    def _batch(self, answers: Sequence[Tensor | None], tokens: int, head: Head) -> States:
        """Zeros on padding. In the dtype of the head, as a local teacher's are, or a wider one that was asked for."""
        weight, device = self.head.weight, head.device
        dtype = torch.promote_types(self.dtype, weight.dtype)
        hidden = torch.zeros(len(answers), tokens, weight.size(1), dtype=dtype, pin_memory=device.type == "cuda")
        for row, answer in enumerate(answers):
            if answer is not None:
                hidden[row, : len(answer)] = answer
        return States(hidden.to(device, non_blocking=True), self.head.to(device))


def _failed(future: Future[T]) -> bool:
    """Whether the servers gave no usable response; waits until that is known, and raises any other error."""
    error = future.exception()
    if error is not None and not isinstance(error, TeacherServerError):
        raise error
    return error is not None

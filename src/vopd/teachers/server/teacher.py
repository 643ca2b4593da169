"""The teacher behind a server: one prefill request a completion, scored while the student computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Literal

import torch
from torch import Tensor

from vopd.errors import TeacherServerError
from vopd.estimators.teacher_scores import ScoreKind, TopKScores

from ..base import Rollouts, Scored, States
from .client import Servers
from .vllm import Answer, Question, read, request_of

Failure = Literal["raise", "drop"]


class ServerTeacher:
    """``Teacher`` of which only scores are known.

    Args:
        servers: where it is.
        model: what they call it.
        need: what to ask for: the sampled token's score, the teacher's own top k, or those of ids chosen by the
            student.
        gives: what the servers were found to give.
        top_k: how many tokens a position; 0 with "sampled".
        temperature: of the rollout. Asked of the server, which must have been found to heed it; the scores of chosen
            ids are divided by it instead, since whoever asks for them does not need a normaliser.
        vocab_size: the real vocabulary.
        failure: "raise" ends the run where a completion gets no good answer; "drop" leaves it out of the loss.
        watch: called with every generated batch, to see that the servers still are what they were.
    """

    def __init__(
        self,
        servers: Servers,
        model: str,
        *,
        need: ScoreKind,
        gives: frozenset[ScoreKind],
        top_k: int = 0,
        temperature: float = 1.0,
        vocab_size: int | None = None,
        failure: Failure = "raise",
        watch: Callable[[], Future[None]] | None = None,
    ) -> None:
        self.servers, self.model, self.gives = servers, model, gives
        self._need, self._top_k, self._temperature = need, top_k, temperature
        self._vocab_size, self._failure = vocab_size, failure
        self._watch = watch
        self._watched: Future[None] | None = None
        self._asked: dict[int, Future[Answer]] = {}
        self._dropped = 0
        self._reported: dict[str, float] = {}

    def begin(self, rollouts: Rollouts) -> None:
        """Ask for the scores of every row, unless the student must choose the ids first."""
        if self._watch is not None:
            self._see()
            self._watched = self._watch()
        if self._need == "chosen" or rollouts.rows is None:
            return
        for row, question in zip(rollouts.rows.tolist(), self._questions(rollouts)):
            self._asked[row] = self._ask(question)

    def settle(self, rollouts: Rollouts) -> Tensor | None:
        """With "drop" wait for all scores, and say which rows got them."""
        if self._failure == "raise" or rollouts.rows is None:
            return None
        self._see()
        scored = []
        for row in rollouts.rows.tolist():
            error = self._asked[row].exception()
            if error is not None and not isinstance(error, TeacherServerError):
                raise error
            scored.append(error is None)
        self._dropped += scored.count(False)
        return torch.tensor(scored)

    def score(self, rollouts: Rollouts, student: States) -> list[Scored]:
        """Scores of the micro-batch. Rows that were dropped hold zeros, which the mask keeps out of the loss."""
        if self._need == "chosen":
            futures = [self._ask(question) for question in self._questions(rollouts, student)]
        elif rollouts.rows is None:
            futures = [self._ask(question) for question in self._questions(rollouts)]
        else:
            futures = [self._asked.pop(row) for row in rollouts.rows.tolist()]
        dropped = [self._failure == "drop" and future.exception() is not None for future in futures]
        try:
            answers = [None if out else future.result() for future, out in zip(futures, dropped)]
        except TeacherServerError:
            self.close()
            raise
        self._see()
        device = student.head.weight.device
        scores = self._batch(answers, rollouts.completion_ids.size(1), device)
        if not any(dropped):
            return [Scored(scores)]
        return [Scored(scores, mask=(~torch.tensor(dropped, device=device)).unsqueeze(-1))]

    def metrics(self) -> dict[str, float]:
        """Requests, repetitions, dropped rows and bytes of this process since the last call."""
        counts = {**self.servers.counts, "dropped_rows": float(self._dropped)}
        found = {f"teacher/{name}": count - self._reported.get(name, 0.0) for name, count in counts.items()}
        self._reported = counts
        return found

    def close(self) -> None:
        """Give up what is under way."""
        self.servers.close()

    def _see(self) -> None:
        """Raise what the watch has found."""
        watched, self._watched = self._watched, None
        if watched is None:
            return
        try:
            watched.result()
        except TeacherServerError:
            self.close()
            raise

    def _ask(self, question: Question) -> Future[Answer]:
        path, body = request_of(question, self.model)
        return self.servers.submit(path, body, lambda answer: read(question, self.model, answer, self._vocab_size))

    def _questions(self, rollouts: Rollouts, student: States | None = None) -> list[Question]:
        chosen = None if student is None else self._chosen(rollouts, student)
        found = []
        for row, (prompt, completion) in enumerate(_texts(rollouts)):
            found.append(
                Question(
                    ids=(*prompt, *completion),
                    start=len(prompt),
                    top_k=self._top_k,
                    chosen=None if chosen is None else tuple(map(tuple, chosen[row, : len(completion)].tolist())),
                    temperature=1.0 if self._need == "chosen" else self._temperature,
                )
            )
        return found

    def _chosen(self, rollouts: Rollouts, student: States) -> Tensor:
        """The student's top k at every position and the sampled token after them, (B, T, k + 1).

        In the dtype of the head: where that rounds, other ids than the exact k may come out, which still depend on the
        state alone. A scale above 0 and a soft cap change no order.
        """
        head = student.head.detach().map(lambda part: part[: self._vocab_size])
        top = []
        for row in student.hidden.detach():  # [T, V] logits at a time, as the loss's chunks are
            logits = row.to(head.weight.dtype) @ head.weight.T
            logits = logits if head.bias is None else logits + head.bias
            top.append(logits.topk(self._top_k, dim=-1).indices)
        chosen = torch.stack(top)
        return torch.cat([chosen, rollouts.completion_ids.to(chosen.device).unsqueeze(-1)], dim=-1)

    def _batch(self, answers: list[Answer | None], length: int, device: torch.device) -> TopKScores:
        """Answers as one batch; 0 on the padding, where no entry of the top k is present."""
        sampled = torch.zeros(len(answers), length)
        ids = torch.zeros(len(answers), length, self._top_k, dtype=torch.long)
        logprobs = torch.full((len(answers), length, self._top_k), -torch.inf)
        for row, answer in enumerate(answers):
            if answer is not None:
                tokens = len(answer.sampled)
                sampled[row, :tokens] = answer.sampled
                ids[row, :tokens] = answer.top_k_ids
                logprobs[row, :tokens] = answer.top_k_logprobs
        if self._need == "sampled":
            return TopKScores(sampled.to(device))
        if self._need == "chosen":
            sampled, logprobs = sampled / self._temperature, logprobs / self._temperature
        return TopKScores(sampled.to(device), ids.to(device), logprobs.to(device), chosen=self._need == "chosen")


def _texts(rollouts: Rollouts) -> list[tuple[list[int], list[int]]]:
    """Prompt and completion of each row without their padding."""
    prompts = zip(rollouts.prompt_ids.tolist(), rollouts.prompt_mask.tolist())
    completions = zip(rollouts.completion_ids.tolist(), rollouts.completion_mask.tolist())
    return [
        ([token for token, real in zip(*prompt) if real], [token for token, real in zip(*completion) if real])
        for prompt, completion in zip(prompts, completions)
    ]

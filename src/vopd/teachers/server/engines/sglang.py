"""SGLang's endpoints.

One endpoint, ``/generate``, scores a completion, sent as token ids, in one prefill request, and returns its last hidden
states with the scores if the server was started for them. It ignores the model's name and does not return it, so a
response is checked by what it repeats: the ids, their number, and the ids again beside their scores.

- The scores of the sampled tokens and the teacher's top k are separate lists, so the sampled token is never in the top
  k unless it belongs there. There is one list of other ids to score for all positions, so ids chosen for each position
  cannot be scored.
- Scores are at temperature 1, whatever the request sets.
- The server leaves out the hidden states of tokens in its prefix cache, but does not look for tokens there whose scores
  were requested: every request of states asks for scores, too. It also leaves out those of all chunks but the last if a
  prompt is prefilled in chunks, and all of them if no token is to be generated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from vopd.errors import TeacherServerError

from ..questions import ABOVE_ZERO, Answer, BadAnswer, Continuation, Question, Request, StatesQuestion, checked_score
from .base import ABSENT, Engine

GENERATE = "/generate"

# Of the context: one token to generate, and six that the server does not let a prompt have.
_SPARE = 7


class SGLang(Engine):
    """An SGLang server; read in the sources of 0.5.23 and tried with its CPU engine."""

    name = "SGLang"
    start_states = "sglang serve --model-path TEACHER --enable-return-hidden-states --chunked-prefill-size -1"
    serves_adapters = False
    states_with_scores = True
    spare_of_scores = _SPARE
    spare_of_states = _SPARE

    def lacks_states(self, status: int, message: str) -> bool:
        """An older server, or one that was not started for them; it names the flag."""
        return status in ABSENT or (status == 400 and "--return-hidden-states-mode" in message)

    def scores(self, question: Question, model: str) -> Request:
        """Asks for the top k beside the sampled tokens.

        Raises:
            TeacherServerError: it asks for chosen ids.
        """
        if question.chosen is not None:
            raise TeacherServerError(
                "SGLang does not score ids that are chosen for each position; use an estimator that needs none, or "
                f"start the server for hidden states: {self.start_states}"
            )
        body = _prefill(question.ids, question.start, model, question.temperature)
        return Request(GENERATE, {**body, "top_logprobs_num": question.top_k})

    def read_scores(self, question: Question, model: str, body: Any, vocab_size: int | None) -> Answer:
        """The scores, each checked."""
        meta = _checked(question.ids, question.start, body, vocab_size)
        tokens = question.ids[question.start :]
        sampled = [checked_score(entry[0]) for entry in meta["input_token_logprobs"][1:]]
        positions = meta["input_top_logprobs"][1:] if question.top_k else [[] for _ in tokens]
        if len(positions) != len(tokens):
            raise BadAnswer(f"the response has a top k of {len(positions)} tokens of {len(tokens)}")
        top = [_top_k(entries, question.top_k) for entries in positions]
        for token, score, found in zip(tokens, sampled, top):
            _check_agrees(token, score, found)
        return Answer.of(sampled, top, question.top_k, vocab_size)

    def states(self, question: StatesQuestion, model: str) -> Request:
        """Asks for states as JSON numbers of the server's own precision: there is no binary form."""
        body = _prefill(question.ids, question.start, model)
        return Request(GENERATE, {**body, "return_hidden_states": True})

    def read_states(self, question: StatesQuestion, model: str, body: Any) -> Tensor:
        """The states, which must be all there and finite, rounded to the requested precision."""
        states = _checked(question.ids, question.start, body).get("hidden_states")
        if not states:
            raise BadAnswer("the response has no hidden states")
        rows, needed = states[0], len(question.ids) - question.start + 1
        if not needed <= len(rows) <= len(question.ids):
            raise BadAnswer(
                f"the response has hidden states of {len(rows)} tokens, but {needed} were requested; start the server "
                "with --chunked-prefill-size -1"
            )
        found = _numbers(rows[-needed:])
        if found.dim() != 2 or found.size(1) != (question.width or found.size(1)):
            raise BadAnswer(f"the hidden states are {tuple(found.shape)}, but their width must be {question.width}")
        if not bool(found.isfinite().all()):
            raise BadAnswer("a hidden state is not finite")
        return found[:-1].to(question.dtype)  # the last token's predicts none of the completion

    def continuation(self, prompt: Sequence[int], tokens: int, model: str) -> Request:
        """Asks for the most likely tokens."""
        sampling = {"max_new_tokens": tokens, "temperature": 0}
        return Request(GENERATE, {"model": model, "input_ids": list(prompt), "sampling_params": sampling})

    def read_continuation(self, body: Any) -> Continuation:
        """The tokens; the server names the one that ended them."""
        ids, reason = body["output_ids"], body["meta_info"]["finish_reason"]
        if not ids or reason["type"] not in {"stop", "length"}:
            raise BadAnswer(f"no tokens were generated ({reason})")
        return Continuation(tuple(ids), ids[-1] if reason.get("matched") == ids[-1] else None)

    def decoding(self, ids: Sequence[int], model: str) -> Request:
        """Asks ``/detokenize``."""
        return Request("/detokenize", {"model": model, "tokens": list(ids), "skip_special_tokens": False})

    def read_decoding(self, body: Any) -> str:
        """The text."""
        return str(body["text"])


def _prefill(ids: Sequence[int], start: int, model: str, temperature: float = 1.0) -> dict[str, Any]:
    """What requests of scores and states have in common."""
    return {
        "model": model,  # for a router before the server, which itself ignores it
        "input_ids": list(ids),
        "sampling_params": {"max_new_tokens": 1, "temperature": temperature},
        "return_logprob": True,
        "logprob_start_len": start - 1,  # the position itself is listed without a score
        "return_prompt_token_ids": True,
    }


def _checked(ids: Sequence[int], start: int, body: Any, vocab_size: int | None = None) -> Mapping[str, Any]:
    """The response's ``meta_info``, if it is about all of these ids."""
    meta, echoed = body["meta_info"], body.get("prompt_token_ids")
    if meta["finish_reason"]["type"] == "abort":
        raise BadAnswer(f"the server stopped working on the request ({meta['finish_reason'].get('message')})")
    if echoed is None:
        raise BadAnswer("the response does not echo the ids (return_prompt_token_ids needs a newer SGLang)")
    if list(echoed) != list(ids):
        raise BadAnswer("the response echoes other ids than were sent")
    scored = meta["input_token_logprobs"]
    if meta["prompt_tokens"] != len(ids) or len(scored) != len(ids) - start + 1:
        raise BadAnswer(
            f"the response scores {len(scored)} positions of {len(ids) - start + 1}, in {meta['prompt_tokens']} tokens "
            f"of {len(ids)}"
        )
    for token, entry in zip(ids[start:], scored[1:]):
        # The server writes 0 for the last id of its vocabulary, whose score is its own all the same.
        last = entry[1] == 0 and (vocab_size is None or token >= vocab_size - 1)
        if entry[1] != token and not last:
            raise BadAnswer(f"the response scores the token {entry[1]} instead of {token}")
    return cast(Mapping[str, Any], meta)


def _top_k(entries: Any, top_k: int) -> dict[int, float]:
    """The log-probabilities of one position's k most likely tokens, in descending order."""
    found = {int(entry[1]): checked_score(entry[0]) for entry in entries}
    if len(found) != top_k:
        raise BadAnswer(f"a position has {len(found)} scores instead of the requested {top_k}")
    return dict(sorted(found.items(), key=lambda entry: -entry[1]))


def _check_agrees(token: int, score: float, found: Mapping[int, float]) -> None:
    """Check the sampled token's score against the top k, which the server returns in another list: lists that are about
    different positions would bias every baseline."""
    if token in found and abs(found[token] - score) > ABOVE_ZERO:
        raise BadAnswer(f"the sampled token {token} has two scores, {score} and {found[token]}")
    if found and token not in found and score > min(found.values()) + ABOVE_ZERO:
        raise BadAnswer(f"the sampled token {token} is more likely than the top k, but not among them")


def _numbers(rows: Any) -> Tensor:
    """Rows of numbers, float32; SGLang's JSON has null instead of numbers that are not finite."""
    try:
        return torch.tensor(rows, dtype=torch.float32)
    except (TypeError, RuntimeError) as error:
        raise BadAnswer("a hidden state is not a finite number") from error

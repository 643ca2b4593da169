"""Requests to a vLLM server and parsing of its responses: pure functions that check every response.

Two endpoints score a completion, sent as token ids, in one prefill request:

- ``/v1/completions`` with ``prompt_logprobs=k``: at every position the k most likely tokens and the actual one,
  whatever its rank. k + 1 entries mean that the actual token is not among the k: it must leave the support, or the
  support would depend on the sample and every baseline on it would be biased. Ranks cannot show this, since tied tokens
  all get the worst rank of the tie.
- ``/inference/v1/generate`` with ``prompt_logprob_token_ids``: log-probabilities of ids chosen by the caller.
"""

from __future__ import annotations

import ast
import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

COMPLETIONS = "/v1/completions"
GENERATE = "/inference/v1/generate"

# A log-probability is at most 0, but a server that rounds the normalizer can return slightly more.
_ABOVE_ZERO = 1e-3
# What vLLM's JSON contains instead of minus infinity.
_NO_CHANCE = -9999.0


Request = tuple[str, dict[str, Any] | None]
"""Path of an endpoint and JSON body; None for a GET request."""


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


def request_of(question: Question, model: str) -> Request:
    """Endpoint and JSON body that send `question` to the model that the server calls `model`."""
    ids, common = list(question.ids), {"model": model, "return_token_ids": True}
    sampling: dict[str, Any] = {"max_tokens": 1, "temperature": question.temperature}  # vLLM refuses max_tokens=0
    if question.chosen is None:
        return COMPLETIONS, {**common, **sampling, "prompt": ids, "prompt_logprobs": question.top_k}
    sampling["prompt_logprob_token_ids"] = [list(row) for row in question.chosen]
    sampling["prompt_logprob_start"] = question.start - 1  # row i: ids after position start - 1 + i
    return GENERATE, {**common, "token_ids": ids, "sampling_params": sampling}


def read(question: Question, model: str, body: Any, vocab_size: int | None = None) -> Answer:
    """The scores in the response `body` to `question`.

    Args:
        question: the request.
        model: name of the model that must have responded.
        body: the parsed JSON.
        vocab_size: size of the vocabulary: larger ids, padding rows of the head, are removed from the support.

    Raises:
        BadAnswer: the response comes from another model, echoes other ids, lacks a token's score, or has a score that
            is not finite or is above 0.
        AttributeError, KeyError, TypeError, ValueError: the response has another form.
    """
    if body.get("model") != model:
        raise BadAnswer(f"the response comes from the model {body.get('model')!r}, not from {model!r}")
    if question.chosen is None:
        return _of_completion(question, body, vocab_size)
    return _of_chosen(question, body)


def _of_completion(question: Question, body: Mapping[str, Any], vocab_size: int | None) -> Answer:
    (choice,) = body["choices"]
    _check_echo(question, choice.get("prompt_token_ids"))
    positions = choice.get("prompt_logprobs")
    if positions is None:
        raise BadAnswer("the response has no prompt_logprobs")
    if len(positions) != len(question.ids):
        raise BadAnswer(f"the response scores {len(positions)} positions of {len(question.ids)}")
    sampled, ids, logprobs = [], [], []
    for token, entries in zip(question.ids[question.start :], positions[question.start :]):
        score, others = _of_position(token, entries, question.top_k)
        kept = [(other, value) for other, value in others if vocab_size is None or other < vocab_size]
        missing = question.top_k - len(kept)
        sampled.append(score)
        ids.append([other for other, _ in kept] + [0] * missing)
        logprobs.append([value for _, value in kept] + [-math.inf] * missing)
    shape = (len(sampled), question.top_k)
    return Answer(
        torch.tensor(sampled, dtype=torch.float32),
        torch.tensor(ids, dtype=torch.long).reshape(shape),
        torch.tensor(logprobs, dtype=torch.float32).reshape(shape),
    )


def _of_position(token: int, entries: Any, top_k: int) -> tuple[float, list[tuple[int, float]]]:
    """The sampled token's score, and the teacher's top k in descending order, without it unless it is among them."""
    found = {int(other): _score(entry.get("logprob")) for other, entry in entries.items()}
    if token not in found:
        raise BadAnswer(f"the sampled token {token} has no score")
    sampled = found[token]
    if sampled <= _NO_CHANCE:
        raise BadAnswer(f"the teacher gives the sampled token {token} no probability at all")
    if len(found) == top_k + 1:
        del found[token]
    elif len(found) != top_k:
        raise BadAnswer(f"a position has {len(found)} scores instead of the requested {top_k} or {top_k + 1}")
    return sampled, sorted(found.items(), key=lambda entry: -entry[1])


def _of_chosen(question: Question, body: Mapping[str, Any]) -> Answer:
    assert question.chosen is not None
    _check_echo(question, body.get("prompt_token_ids"))
    encoded = body.get("prompt_token_id_logprobs")
    if encoded is None:
        raise BadAnswer("the response has no prompt_token_id_logprobs")
    scores = decode_array(encoded)
    shape = (len(question.chosen), len(question.chosen[0]))
    if scores.shape != shape:
        raise BadAnswer(f"the response has scores of shape {tuple(scores.shape)} instead of the requested {shape}")
    if not bool(scores.isfinite().all()) or bool((scores > _ABOVE_ZERO).any()):
        raise BadAnswer("a score is not finite or is above 0")
    scores = scores.clamp(max=0)
    ids = torch.tensor(question.chosen)
    # A sampled token that is among the chosen ones was scored twice: two different scores show that ids were mixed up.
    twice = (ids[:, :-1] == ids[:, -1:]) & (scores[:, :-1] != scores[:, -1:])
    if bool(twice.any()):
        raise BadAnswer("the scores do not belong to the requested ids")
    return Answer(scores[:, -1].clone(), ids[:, :-1].clone(), scores[:, :-1].clone())


def _check_echo(question: Question, echoed: Any) -> None:
    if echoed is None:
        raise BadAnswer("the response does not echo the ids (return_token_ids)")
    if list(echoed) != list(question.ids):
        raise BadAnswer("the response echoes other ids than were sent")


def _score(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadAnswer(f"a score is {value}, not finite")
    if value > _ABOVE_ZERO:
        raise BadAnswer(f"a log-probability is {value}, above 0")
    return min(float(value), 0.0)


def decode_array(encoded: Any) -> Tensor:
    """Decode a float32 array in the .npy format, base64-encoded, without numpy and without pickle.

    Raises:
        BadAnswer: it is not such an array.
    """
    try:
        data = base64.b64decode(encoded, validate=True)
        width = 2 if data[6] == 1 else 4
        start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
        header = ast.literal_eval(data[8 + width : start].decode("latin1"))
        kind, shape = header["descr"], tuple(header["shape"])
        if kind != "<f4" or header["fortran_order"] or len(data) - start != 4 * math.prod(shape):
            raise BadAnswer(f"the scores are an array of {kind}, not of float32")
        return torch.frombuffer(bytearray(data[start:]), dtype=torch.float32).reshape(shape)
    except (TypeError, LookupError, SyntaxError, ValueError, RuntimeError) as error:
        raise BadAnswer("the scores are not an array") from error

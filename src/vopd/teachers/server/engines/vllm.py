"""vLLM's endpoints.

A server that generates scores a completion, sent as token ids, in one prefill request to one of two endpoints:

- ``/v1/completions`` with ``prompt_logprobs=k``: at every position the k most likely tokens and the actual one,
  whatever its rank. k + 1 entries mean that the actual token is not among the k: it must leave the support, or the
  support would depend on the sample and every baseline on it would be biased. Ranks cannot show this, since tied tokens
  all get the worst rank of the tie.
- ``/inference/v1/generate`` with ``prompt_logprob_token_ids``: log-probabilities of ids chosen by the caller.

A server with ``--runner pooling --pooler-config.task token_embed`` returns the last hidden state of every token from
``/pooling``, in binary.
"""

from __future__ import annotations

import ast
import base64
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..questions import ABOVE_ZERO, Answer, BadAnswer, Continuation, Question, Request, StatesQuestion, checked_score
from .base import ABSENT, Engine

COMPLETIONS = "/v1/completions"
GENERATE = "/inference/v1/generate"
POOLING = "/pooling"

# What vLLM's JSON contains instead of minus infinity.
_NO_CHANCE = -9999.0
# Bytes of a response whose length is not known: of the first request, a prompt.
_ROOM = 1 << 26


class VLLM(Engine):
    """A vLLM server, 0.11 or newer."""

    name = "vLLM"
    start_states = "vllm serve TEACHER --runner pooling --pooler-config.task token_embed --host 127.0.0.1"
    serves_adapters = True
    states_with_scores = False
    spare_of_scores = 1  # for the token that is generated
    spare_of_states = 0

    def lacks_states(self, status: int, message: str) -> bool:
        """A server that generates does not have the endpoint."""
        return status in ABSENT

    def scores(self, question: Question, model: str) -> Request:
        """Asks ``/v1/completions``, or ``/inference/v1/generate`` for chosen ids."""
        ids, common = list(question.ids), {"model": model, "return_token_ids": True}
        sampling: dict[str, Any] = {"max_tokens": 1, "temperature": question.temperature}  # vLLM refuses max_tokens=0
        if question.chosen is None:
            return Request(COMPLETIONS, {**common, **sampling, "prompt": ids, "prompt_logprobs": question.top_k})
        sampling["prompt_logprob_token_ids"] = [list(row) for row in question.chosen]
        sampling["prompt_logprob_start"] = question.start - 1  # row i: ids after position start - 1 + i
        return Request(GENERATE, {**common, "token_ids": ids, "sampling_params": sampling})

    def read_scores(self, question: Question, model: str, body: Any, vocab_size: int | None) -> Answer:
        """The scores, each checked."""
        _check_model(model, body)
        if question.chosen is None:
            return _of_completion(question, body, vocab_size)
        return _of_chosen(question, body)

    def states(self, question: StatesQuestion, model: str) -> Request:
        """Asks ``/pooling`` for the states of all tokens: there is no way to leave out the prompt's."""
        room = _ROOM if question.width is None else len(question.ids) * question.width * question.dtype.itemsize
        body = {
            "model": model,
            "input": list(question.ids),
            "task": "token_embed",
            "use_activation": False,  # which would normalize them
            "encoding_format": "bytes",
            "embed_dtype": _name(question.dtype),
            "endianness": sys.byteorder,
        }
        return Request(POOLING, body, room)

    def read_states(self, question: StatesQuestion, model: str, body: Any) -> Tensor:
        """The states, which must be all there, finite, and of the requested form."""
        _check_model(model, body.metadata)
        (item,) = body.metadata["data"]
        tokens, width = item["shape"]
        form = (item["embed_dtype"], item["endianness"])
        if form != (_name(question.dtype), sys.byteorder):
            raise BadAnswer(f"the response has numbers in {' '.join(map(str, form))}-endian, which were not requested")
        if tokens != len(question.ids) or width != (question.width or width):
            wanted = f"{len(question.ids)} x {question.width or 'any'}"
            raise BadAnswer(f"the response has {tokens} x {width} numbers instead of {wanted}, tokens x width")
        size = tokens * width * question.dtype.itemsize
        if (item["start"], item["end"], len(body.content)) != (0, size, size):
            raise BadAnswer(f"the response has {len(body.content)} bytes instead of {size}")
        found = torch.frombuffer(body.content, dtype=question.dtype).reshape(tokens, width)
        if not all(bool(bound.isfinite()) for bound in found.aminmax()):  # NaN is both; no mask of this size
            raise BadAnswer("a hidden state is not finite")
        return found[question.start - 1 : -1].clone()  # without the prompt's

    def continuation(self, prompt: Sequence[int], tokens: int, model: str) -> Request:
        """Asks ``/v1/completions`` to generate."""
        body = {"model": model, "prompt": list(prompt), "max_tokens": tokens, "temperature": 0}
        return Request(COMPLETIONS, {**body, "return_token_ids": True})

    def read_continuation(self, body: Any) -> Continuation:
        """The tokens of the only choice."""
        choice = body["choices"][0]
        ids = choice.get("token_ids")
        if not ids:
            raise BadAnswer(
                "no tokens were generated, or no token_ids returned (return_token_ids needs vLLM 0.11 or newer; TGI, "
                "llama.cpp and Ollama do not have it)"
            )
        ended = choice.get("finish_reason") == "stop" and choice.get("stop_reason") is None
        return Continuation(tuple(ids), ids[-1] if ended else None)

    def decoding(self, ids: Sequence[int], model: str) -> Request:
        """Asks ``/detokenize``."""
        return Request("/detokenize", {"model": model, "tokens": list(ids)})

    def read_decoding(self, body: Any) -> str:
        """The text, called prompt."""
        return str(body["prompt"])


def _check_model(model: str, body: Mapping[str, Any]) -> None:
    if body.get("model") != model:
        raise BadAnswer(f"the response comes from the model {body.get('model')!r}, not from {model!r}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _of_completion(question: Question, body: Mapping[str, Any], vocab_size: int | None) -> Answer:
    (choice,) = body["choices"]
    _check_echo(question, choice.get("prompt_token_ids"))
    positions = choice.get("prompt_logprobs")
    if positions is None:
        raise BadAnswer("the response has no prompt_logprobs")
    if len(positions) != len(question.ids):
        raise BadAnswer(f"the response scores {len(positions)} positions of {len(question.ids)}")
    found = [
        _of_position(token, entries, question.top_k)
        for token, entries in zip(question.ids[question.start :], positions[question.start :])
    ]
    return Answer.of([score for score, _ in found], [top for _, top in found], question.top_k, vocab_size)


def _of_position(token: int, entries: Any, top_k: int) -> tuple[float, dict[int, float]]:
    """The sampled token's score, and the teacher's top k in descending order, without it unless it is among them."""
    found = {int(other): checked_score(entry.get("logprob")) for other, entry in entries.items()}
    if token not in found:
        raise BadAnswer(f"the sampled token {token} has no score")
    sampled = found[token]
    if sampled <= _NO_CHANCE:
        raise BadAnswer(f"the teacher gives the sampled token {token} no probability at all")
    if len(found) == top_k + 1:
        del found[token]
    elif len(found) != top_k:
        raise BadAnswer(f"a position has {len(found)} scores instead of the requested {top_k} or {top_k + 1}")
    return sampled, dict(sorted(found.items(), key=lambda entry: -entry[1]))


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
    if not bool(scores.isfinite().all()) or bool((scores > ABOVE_ZERO).any()):
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

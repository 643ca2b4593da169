"""What is found out about a teacher server before it is trusted: every claim is tried, none is read off a name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vopd.errors import ConfigurationError, TeacherServerError
from vopd.estimators.teacher_scores import ScoreKind

from .client import Refused, Servers
from .vllm import COMPLETIONS, Answer, BadAnswer, Question, read, request_of

# Nats a token on average: what two precisions or batch sizes differ by at most, and other weights by at least.
SAME_WEIGHTS = 0.05
# Nats: scores of one row at two temperatures must be in proportion to this.
_PROPORTION = 0.02
_PROBE_TOKENS = 64


@dataclass(frozen=True)
class Probe:
    """A text that the server wrote itself, and what it says of it.

    Attributes:
        question: the text, to be scored again at any time.
        answer: its scores.
        end_id: the id that the server ended the text with; None where it ran on to the limit.
    """

    question: Question
    answer: Answer
    end_id: int | None


@dataclass(frozen=True)
class Repeat:
    """How far two scorings of one text are apart, nats a token."""

    largest: float
    mean: float


def find_model(servers: Servers, url: str, wanted: str | None) -> tuple[str, int | None]:
    """Name of the model to ask for, and the longest sequence that it takes (None where the server does not say).

    Raises:
        TeacherServerError: nothing answers, or not as a model server.
        ConfigurationError: the server has no such model, or several and none was named.
    """
    listed = servers.get(url, "/v1/models")
    entries = listed.get("data") if isinstance(listed, dict) else None
    if not entries:
        raise TeacherServerError(f"{url} lists no models at /v1/models; start a teacher there with vllm serve TEACHER")
    lengths = {str(entry.get("id")): entry.get("max_model_len") for entry in entries}
    if wanted is None and len(lengths) > 1:
        raise ConfigurationError(
            f"{url} serves several models; choose the teacher with teacher_server_model: {', '.join(lengths)}"
        )
    name = wanted or next(iter(lengths))
    if name not in lengths:
        raise ConfigurationError(
            f"{url} serves no model {name!r}; set teacher_server_model to one of: {', '.join(lengths)}"
        )
    return name, lengths[name]


def probe(servers: Servers, url: str, model: str, prompt: Sequence[int], top_k: int, vocab_size: int | None) -> Probe:
    """Let the server go on from a prompt, most likely token first, and score what it wrote.

    Raises:
        TeacherServerError: it will not, or what it answers cannot be used.
    """
    body = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": _PROBE_TOKENS,
        "temperature": 0,
        "return_token_ids": True,
    }
    choice = servers.ask(COMPLETIONS, body, _only_choice, url)
    written = choice["token_ids"]
    ended = choice.get("finish_reason") == "stop" and choice.get("stop_reason") is None
    question = Question((*prompt, *written), start=len(prompt), top_k=top_k)
    return Probe(question, ask(servers, url, model, question, vocab_size), written[-1] if ended else None)


def _only_choice(body: Any) -> Any:
    try:
        choice = body["choices"][0]
        if not choice["token_ids"]:
            raise BadAnswer("the server wrote nothing")
        return choice
    except (KeyError, IndexError, TypeError) as error:
        raise BadAnswer("the answer has no choice with token_ids (return_token_ids); vLLM 0.11 or newer has") from error


def ask(servers: Servers, url: str, model: str, question: Question, vocab_size: int | None = None) -> Answer:
    """The scores of one text from one server."""
    path, body = request_of(question, model)
    return servers.ask(path, body, lambda found: read(question, model, found, vocab_size), url)


def difference(first: Answer, second: Answer) -> Repeat:
    """How far the scores of the text's own tokens are apart."""
    apart = (first.sampled - second.sampled).abs()
    return Repeat(float(apart.max()), float(apart.mean()))


def heeds_temperature(servers: Servers, url: str, model: str, found: Probe, temperature: float) -> bool:
    """Whether the server scores at the temperature that it is asked for.

    Of two tokens a, b of one row log q_T(a) - log q_T(b) = (log q(a) - log q(b)) / T, whatever the normaliser is.
    """
    top_k = max(found.question.top_k, 2)
    plain, hot = (
        ask(servers, url, model, Question(found.question.ids, found.question.start, top_k, temperature=asked))
        for asked in (1.0, temperature)
    )
    same = (plain.top_k_ids == hot.top_k_ids).all(-1)  # ties may be broken differently
    apart = [answer.top_k_logprobs[:, 0] - answer.top_k_logprobs[:, 1] for answer in (plain, hot)]
    usable = same & (apart[0] > 5 * _PROPORTION) & apart[0].isfinite()
    if not bool(usable.any()):
        return False
    wrong = (apart[1] - apart[0] / temperature)[usable].abs()
    return bool((wrong <= _PROPORTION * (1 + apart[0][usable])).all())


def scores_chosen(servers: Servers, url: str, model: str, found: Probe) -> str | None:
    """None where the server scores ids of the caller's choice; otherwise, in its words, why it does not.

    Asked for the teacher's own top tokens, whose scores are known already: others coming back would show.
    """
    question, answer = found.question, found.answer
    others = answer.top_k_ids if question.top_k else answer.top_k_ids.new_zeros(question.tokens, 1)
    rows = torch.cat([others, torch.tensor(question.ids[question.start :]).unsqueeze(-1)], dim=-1)
    chosen = Question(question.ids, question.start, chosen=tuple(map(tuple, rows.tolist())))
    try:
        scored = ask(servers, url, model, chosen)
    except Refused as error:
        return str(error)
    except TeacherServerError as error:
        return str(error.__cause__ or error)
    apart = difference(answer, scored).mean
    if apart > SAME_WEIGHTS:
        return f"{url} scores chosen ids {apart:.2f} nats away from its prompt_logprobs"
    return None


def most_top_k(servers: Servers, url: str, model: str, found: Probe, asked: Sequence[int] = (20, 5, 1)) -> int:
    """The largest of `asked` that the server takes as prompt_logprobs; 0 for none."""
    for top_k in asked:
        try:
            ask(servers, url, model, Question(found.question.ids, found.question.start, top_k))
            return top_k
        except Refused:
            continue
    return 0


def score_kinds(top_k: int, chosen: bool) -> frozenset[ScoreKind]:
    """What a server gives that takes `top_k` as prompt_logprobs and scores chosen ids or not."""
    found: set[ScoreKind] = {"sampled"}
    if top_k:
        found.add("top_k")
    if chosen:
        found.add("chosen")
    return frozenset(found)


class Watch:
    """Sees that every server still has the weights that it had at the start: a fixed text is scored now and then.

    Args:
        servers: where.
        model: its name there.
        found: the text and its scores at the start.
        repeat: how far two scorings at the start were apart.
    """

    def __init__(self, servers: Servers, model: str, found: Probe, repeat: Repeat) -> None:
        self._servers, self._model, self._found = servers, model, found
        self.limit = SAME_WEIGHTS + 5 * repeat.mean

    def __call__(self) -> Any:
        """Look in the background; the future holds TeacherServerError where other weights answer."""
        return self._servers.background(self.look)

    def look(self) -> None:
        """Score the text on every server. One that does not answer is not judged here."""
        question = Question(self._found.question.ids, self._found.question.start)
        path, body = request_of(question, self._model)
        for url in self._servers.urls:
            try:
                answer = self._servers.ask(path, body, lambda found: read(question, self._model, found), url, retries=0)
            except TeacherServerError:
                continue
            apart = difference(self._found.answer, answer).mean
            if apart > self.limit:
                raise TeacherServerError(
                    f"the teacher server {url} now scores a text {apart:.2f} nats a token away from what the run began "
                    "with: it serves other weights; restart it with the first ones, or begin a new run"
                )

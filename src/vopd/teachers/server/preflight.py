"""Preflight checks of teacher servers: every capability is tested with a request, not inferred from a version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from vopd.errors import ConfigurationError, TeacherServerError
from vopd.models import CommonVocabulary

from .client import Rejected, ServedModel, Servers
from .same_ids import check_vocabulary
from .vllm import COMPLETIONS, Answer, BadAnswer, Question

# Nats/token on average: different precisions or batch sizes differ by less, different weights by more.
SAME_WEIGHTS = 0.05
# Nats: scores of one row at two temperatures must be proportional to within this.
_PROPORTION = 0.02
_WRITTEN_TOKENS = 64


@dataclass(frozen=True)
class Findings:
    """Results of the preflight checks of one model's servers, with further checks as methods.

    Attributes:
        model: the model on its servers.
        length: longest sequence that all servers accept; None if none reports it.
        same_ids: by address, the ids that are the same as the student's; None if the server cannot be asked.
        text: a text that the first server generated.
        end_id: the id that the server ended it with; None if it reached the length limit.
        scores: scores of its tokens, from the first server.
        repeats: by address, how much a second scoring differs from ``scores``, in nats for each token.
    """

    model: ServedModel
    length: int | None
    same_ids: dict[str, CommonVocabulary | None]
    text: Question
    end_id: int | None
    scores: Answer
    repeats: dict[str, Tensor]

    def most_top_k(self, asked: Sequence[int]) -> tuple[int, str]:
        """The first of `asked` that the first server accepts as prompt_logprobs; or 0, and why it accepts none."""
        refusal = ""
        for top_k in asked:
            try:
                self.model.score(replace(self.text, top_k=top_k), self._first)
                return top_k, ""
            except Rejected as error:
                refusal = str(error)
        return 0, refusal

    def refusal_of_chosen(self) -> str:
        """Why the first server does not score ids chosen by the caller, in its words; empty if it does."""
        rows = tuple((0, token) for token in self.text.ids[self.text.start :])
        try:
            apart = _apart(self.scores, self.model.score(replace(self.text, chosen=rows), self._first)).mean()
        except TeacherServerError as error:
            return str(error.__cause__ or error)
        too_far = f"{self._first} returns scores of chosen ids that differ by {apart:.2f} nats from its prompt_logprobs"
        return too_far if apart > SAME_WEIGHTS else ""

    def untempered(self, temperature: float) -> list[str]:
        """Addresses that ignore the requested temperature and score at 1; 1 itself needs no test."""
        urls = self.model.servers.urls if temperature != 1 else ()
        return [url for url in urls if not _applies_temperature(self.model, url, self.text, temperature)]

    def check_weights(self) -> None:
        """Score the text again on every server. A server that does not respond is skipped.

        Raises:
            TeacherServerError: a server's weights have changed since the start.
        """
        for url in self.repeats:
            try:
                apart = _apart(self.scores, self.model.score(self.text, url, retries=0)).mean()
            except TeacherServerError:
                continue
            if apart > _tolerance(self.repeats):
                raise TeacherServerError(
                    f"the scores of the teacher server {url} now differ by {apart:.2f} nats/token from those at the "
                    "start of training: it serves other weights; restart it with the original model, or start a new run"
                )

    @property
    def _first(self) -> str:
        return self.model.servers.urls[0]


def inspect_servers(
    servers: Servers,
    name: str | None,
    tokenizer: Any,
    prompt: Sequence[int],
    vocab_size: int | None = None,
    end_ids: Sequence[int] = (),
) -> Findings:
    """Ask the servers what they serve, and have them score a text.

    Args:
        servers: servers of one model.
        name: its name there; None if it is the only model.
        tokenizer: the student's tokenizer; None skips the comparison of vocabularies.
        prompt: ids for the first server to continue.
        vocab_size: number of ids that student and teacher share, as far as it is known without the servers.
        end_ids: the student's EOS ids besides the tokenizer's.

    Raises:
        TeacherServerError: a server does not respond or does not score prompts; or two have different weights.
        MismatchError: its vocabulary differs from the student's.
        ConfigurationError: the model's name is missing or unknown.
    """
    found_name, length = _find_model(servers, name)
    model, first = ServedModel(servers, found_name, vocab_size), servers.urls[0]
    compared = servers.urls if tokenizer is not None else ()
    same_ids = {url: check_vocabulary(model, url, tokenizer, end_ids) for url in compared}
    shared = [vocab_size, *(common.size for common in same_ids.values() if common is not None)]
    model = replace(model, vocab_size=min((size for size in shared if size is not None), default=None))
    text, end_id = _written(model, first, prompt)
    scores = model.score(text, first)
    repeats = {url: _apart(scores, model.score(text, url)) for url in servers.urls}
    for url, apart in repeats.items():
        if apart.mean() > _tolerance(repeats):
            raise TeacherServerError(
                f"the scores of {url} and {first} differ by {apart.mean():.2f} nats/token: they serve different "
                "weights; start both with the same model"
            )
    return Findings(model, length, same_ids, text, end_id, scores, repeats)


def _find_model(servers: Servers, wanted: str | None) -> tuple[str, int | None]:
    """The model's name, the same on every server, and the longest sequence that all of them accept, if reported."""
    lengths: dict[str, list[int | None]] = {}
    for url in servers.urls:
        models = servers.models(url)
        name = wanted or next(iter(models))
        if name not in models or (wanted is None and len(models) > 1):
            what = "several models" if wanted is None else f"no model {wanted!r}"
            raise ConfigurationError(f"{url} serves {what}; set teacher_server_model to one of: {', '.join(models)}")
        lengths.setdefault(name, []).append(models[name])
    if len(lengths) > 1:
        raise ConfigurationError(
            f"the servers have different names for the teacher ({', '.join(sorted(lengths))}); start them with the "
            "same --served-model-name"
        )
    ((name, found),) = lengths.items()
    return name, min((length for length in found if length is not None), default=None)


def _written(model: ServedModel, url: str, prompt: Sequence[int]) -> tuple[Question, int | None]:
    """The server's greedy continuation of the prompt, to be scored, and the id that ended it."""
    body = {"prompt": list(prompt), "max_tokens": _WRITTEN_TOKENS, "temperature": 0, "return_token_ids": True}
    choice = model.ask(COMPLETIONS, body, _only_choice, url, retries=1)  # another kind of server stays one
    ended = choice.get("finish_reason") == "stop" and choice.get("stop_reason") is None
    return Question((*prompt, *choice["token_ids"]), len(prompt)), choice["token_ids"][-1] if ended else None


def _only_choice(body: Any) -> Any:
    if not body["choices"][0].get("token_ids"):
        raise BadAnswer(
            "no tokens were generated, or no token_ids returned (return_token_ids needs vLLM 0.11 or newer; SGLang, "
            "TGI, llama.cpp and Ollama do not have it)"
        )
    return body["choices"][0]


def _apart(first: Answer, second: Answer) -> Tensor:
    return (first.sampled - second.sampled).abs()


def _tolerance(repeats: dict[str, Tensor]) -> float:
    """Nats/token: scores that differ by more come from different weights. The first server is the reference."""
    return SAME_WEIGHTS + 5 * float(next(iter(repeats.values())).mean())


def _applies_temperature(model: ServedModel, url: str, text: Question, temperature: float) -> bool:
    """Whether the server scores at the requested temperature.

    For two tokens a, b of one row, log q_T(a) - log q_T(b) = (log q(a) - log q(b)) / T, whatever the normalizer is.
    """
    plain, hot = (model.score(replace(text, top_k=2, temperature=asked), url) for asked in (1.0, temperature))
    same = (plain.top_k_ids == hot.top_k_ids).all(-1)  # ties may be broken differently
    apart = [answer.top_k_logprobs[:, 0] - answer.top_k_logprobs[:, 1] for answer in (plain, hot)]
    usable = same & (apart[0] > 5 * _PROPORTION) & apart[0].isfinite()
    if not bool(usable.any()):
        return False
    wrong = (apart[1] - apart[0] / temperature)[usable].abs()
    return bool((wrong <= _PROPORTION * (1 + apart[0][usable])).all())

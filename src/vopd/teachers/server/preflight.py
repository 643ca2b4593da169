"""Preflight checks of teacher servers: every capability is tested with a request, not inferred from a version."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vopd.errors import TeacherServerError
from vopd.kernels import Head
from vopd.models import CommonVocabulary

from .questions import Question, StatesQuestion
from .refusals import Rejected
from .same_ids import check_vocabulary
from .served import ServedModel

# Nats/token on average: different precisions or batch sizes differ by less, different weights by more.
SAME_WEIGHTS = 0.05
# Nats: scores of one row at two temperatures must be proportional to within this.
_PROPORTION = 0.02
_WRITTEN_TOKENS = 64

Measure = Callable[[ServedModel, Question, str, int | None], Tensor]
"""Log-probabilities of a text's tokens after its start, (T,), by the server at an address with so many retries."""


def by_scores(model: ServedModel, text: Question, url: str, retries: int | None = None) -> Tensor:
    """A ``Measure``: what the server scores."""
    return model.score(text, url, retries).sampled


def by_states(head: Head, dtype: torch.dtype) -> Measure:
    """A ``Measure``: log softmax of the server's hidden states times the teacher's output head, over all rows of the
    head, as the teacher's own scores are."""

    def measured(model: ServedModel, text: Question, url: str, retries: int | None = None) -> Tensor:
        found = model.states(StatesQuestion(text.ids, text.start, dtype, head.weight.size(1)), url, retries)
        logprobs = head.logits(found.to(head.device)).log_softmax(-1)
        return logprobs.gather(-1, torch.tensor(text.ids[text.start :], device=head.device).unsqueeze(-1))[:, 0].cpu()

    return measured


@dataclass(frozen=True)
class Findings:
    """Results of the preflight checks of one model's servers.

    Attributes:
        model: the model on its servers.
        text: a text that the servers score.
        measure: how they do.
        scores: log-probabilities of its tokens, from the first server.
        repeats: by address, how much a second scoring differs from ``scores``, in nats for each token.
    """

    model: ServedModel
    text: Question
    measure: Measure
    scores: Tensor
    repeats: dict[str, Tensor]

    def check_weights(self) -> None:
        """Score the text again on every server. A server that does not respond is skipped.

        Raises:
            TeacherServerError: a server's weights have changed since the start.
        """
        for url in self.repeats:
            try:
                apart = (self.scores - self.measure(self.model, self.text, url, 0)).abs().mean()
            except TeacherServerError:
                continue
            if apart > _tolerance(self.repeats):
                raise TeacherServerError(
                    f"the scores of the teacher server {url} now differ by {apart:.2f} nats/token from those at the "
                    "start of training: it serves other weights; restart it with the original model, or start a new run"
                )


def compare_ids(
    model: ServedModel, tokenizer: Any, vocab_size: int | None = None, end_ids: Sequence[int] = ()
) -> tuple[ServedModel, dict[str, CommonVocabulary | None]]:
    """Compare every server's vocabulary with the student's.

    Args:
        model: the model on its servers.
        tokenizer: the student's tokenizer; None skips the comparison.
        vocab_size: number of ids that student and teacher share, as far as it is known without the servers.
        end_ids: the student's EOS ids besides the tokenizer's.

    Returns:
        The model with the number of ids that all share, and by address what ``check_vocabulary`` returns.

    Raises:
        MismatchError: a vocabulary differs from the student's.
    """
    urls = model.servers.urls if tokenizer is not None else ()
    same_ids = {url: check_vocabulary(model, url, tokenizer, end_ids) for url in urls}
    shared = [vocab_size, *(common.size for common in same_ids.values() if common is not None)]
    return replace(model, vocab_size=min((size for size in shared if size is not None), default=None)), same_ids


def written(model: ServedModel, prompt: Sequence[int]) -> tuple[Question, int | None]:
    """The first server's most likely continuation of the prompt, to be scored, and the id that ended it, if any."""
    found = model.continuation(prompt, _WRITTEN_TOKENS, model.servers.urls[0])
    return Question((*prompt, *found.ids), len(prompt)), found.end_id


def measured(model: ServedModel, text: Question, measure: Measure) -> Findings:
    """Have every server score the text, the first one twice.

    Raises:
        TeacherServerError: a server does not respond or does not score texts; or two have different weights.
    """
    first = model.servers.urls[0]
    scores = measure(model, text, first, None)
    repeats = {url: (scores - measure(model, text, url, None)).abs() for url in model.servers.urls}
    for url, apart in repeats.items():
        if apart.mean() > _tolerance(repeats):
            raise TeacherServerError(
                f"the scores of {url} and {first} differ by {apart.mean():.2f} nats/token: they serve different "
                "weights; start both with the same model"
            )
    return Findings(model, text, measure, scores, repeats)


def _tolerance(repeats: dict[str, Tensor]) -> float:
    """Nats/token: scores that differ by more come from different weights. The first server is the reference."""
    return SAME_WEIGHTS + 5 * float(next(iter(repeats.values())).mean())


def most_top_k(found: Findings, asked: Sequence[int]) -> tuple[int, str]:
    """The first of `asked` that the first server accepts as top k; or 0, and why it accepts none."""
    refusal = ""
    for top_k in asked:
        try:
            found.model.score(replace(found.text, top_k=top_k), found.model.servers.urls[0])
            return top_k, ""
        except Rejected as error:
            refusal = str(error)
    return 0, refusal


def refusal_of_chosen(found: Findings) -> str:
    """Why the first server does not score ids chosen by the caller, in its words; empty if it does."""
    rows, first = tuple((0, token) for token in found.text.ids[found.text.start :]), found.model.servers.urls[0]
    try:
        apart = (found.scores - by_scores(found.model, replace(found.text, chosen=rows), first)).abs().mean()
    except TeacherServerError as error:
        return str(error.__cause__ or error)
    too_far = f"{first} returns scores of chosen ids that differ by {apart:.2f} nats from its other scores"
    return too_far if apart > SAME_WEIGHTS else ""


def untempered(found: Findings, temperature: float) -> list[str]:
    """Addresses that ignore the requested temperature and score at 1; 1 itself needs no test."""
    urls = found.model.servers.urls if temperature != 1 else ()
    return [url for url in urls if not _applies_temperature(found.model, url, found.text, temperature)]


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

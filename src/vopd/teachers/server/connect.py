"""From an address to a teacher: everything about a server is tried before the first rollout."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vopd.errors import ConfigurationError, MismatchError, TeacherServerError
from vopd.estimators.checks import check_gives, find_estimator, need_of

from . import preflight
from .client import Refused, Servers
from .preflight import Watch, score_kinds
from .same_ids import check_vocabulary
from .teacher import ServerTeacher

logger = logging.getLogger("vopd")


@dataclass(frozen=True)
class Connected:
    """A server that was found fit.

    Attributes:
        teacher: scores completions.
        model: its name on the server.
        positions: longest sequence that it scores; None where it does not say.
        notes: what was found, a line each.
    """

    teacher: ServerTeacher
    model: str
    positions: int | None = None
    notes: list[str] = field(default_factory=list)


def connect(
    settings: Any,
    *,
    tokenizer: Any,
    compared: bool,
    vocab_size: int,
    prompt: Sequence[int],
    end_ids: Sequence[int],
) -> Connected:
    """Try the servers of `settings` and return the teacher behind them.

    Args:
        settings: a VOPDConfig with ``teacher_server_url``.
        tokenizer: the student's.
        compared: the teacher's own tokenizer was compared with it already.
        vocab_size: number of real ids.
        prompt: ids of a prompt of the run, for the server to go on from.
        end_ids: where the student stops.

    Raises:
        TeacherServerError: no server answers, or not with what is asked.
        MismatchError: its vocabulary is another one.
        ConfigurationError: it does not give what the estimator or the temperature needs.
    """
    servers = Servers(
        settings.teacher_server_url,
        key_env=settings.teacher_server_key_env,
        concurrency=settings.teacher_server_concurrency,
        patience=settings.patience,
        seed=settings.seed,
    )
    try:
        return _connect(servers, settings, tokenizer, compared, vocab_size, prompt, end_ids)
    except Exception:
        servers.close()
        raise


def _connect(
    servers: Servers,
    settings: Any,
    tokenizer: Any,
    compared: bool,
    vocab_size: int,
    prompt: Sequence[int],
    end_ids: Sequence[int],
) -> Connected:
    estimator = find_estimator(settings.estimator)
    need = need_of(estimator)
    model, positions = _find(servers, settings.teacher_server_model)
    notes: list[str] = []
    for url in servers.urls:
        notes.append(_check_ids(servers, url, model, tokenizer, compared))
    top_k = settings.loss_top_k if need == "top_k" else 0
    first = servers.urls[0]
    found = _probe(servers, first, model, prompt, top_k, vocab_size)
    repeat = _agreement(servers, model, found, notes)
    if found.end_id is not None and found.end_id not in end_ids:
        logger.warning(
            f"the teacher ends completions with {found.end_id} ({tokenizer.convert_ids_to_tokens(found.end_id)}), "
            "where the student does not stop and would run on to the length limit; let it stop there too: "
            f"generation_config.eos_token_id = {sorted({*end_ids, found.end_id})}"
        )
    refusal = preflight.scores_chosen(servers, first, model, found) if need == "chosen" else "not asked"
    gives = score_kinds(top_k, refusal is None)
    if need not in gives:
        check_gives(settings.estimator, score_kinds(1, False), f"the server ({refusal})")
    _check_temperature(servers, settings, model, found, need, notes)
    teacher = ServerTeacher(
        servers,
        model,
        need=need,
        gives=gives,
        top_k=settings.loss_top_k or 0,
        temperature=settings.temperature,
        vocab_size=vocab_size,
        failure=settings.teacher_failure,
        watch=Watch(servers, model, found, repeat),
    )
    return Connected(teacher, model, positions, notes)


def _find(servers: Servers, wanted: str | None) -> tuple[str, int | None]:
    """The model's name, the same on every server, and the longest sequence that all of them score."""
    found = [preflight.find_model(servers, url, wanted) for url in servers.urls]
    names = sorted({name for name, _ in found})
    if len(names) > 1:
        raise ConfigurationError(
            f"the servers call the teacher by different names ({', '.join(names)}); start them with one "
            "--served-model-name"
        )
    # Scoring a sequence takes one token more.
    return names[0], min((length - 1 for _, length in found if length is not None), default=None)


def _check_ids(servers: Servers, url: str, model: str, tokenizer: Any, compared: bool) -> str:
    count = check_vocabulary(servers, url, model, tokenizer)
    if count is not None:
        return f"{url}: {model}, all {count} ids mean what they mean to the student"
    if not compared:
        raise MismatchError(
            f"{url} has no /detokenize, so its vocabulary cannot be compared with the student's; name the teacher's "
            "folder or hub id with teacher_model, whose tokenizer is compared instead"
        )
    return f"{url}: {model}, vocabulary compared by the tokenizer of teacher_model only"


def _probe(
    servers: Servers, url: str, model: str, prompt: Sequence[int], top_k: int, vocab_size: int
) -> preflight.Probe:
    try:
        return preflight.probe(servers, url, model, prompt, top_k, vocab_size)
    except Refused as error:
        if top_k and "logprobs" in str(error):
            raise ConfigurationError(
                f"{error}; start it with --max-logprobs {top_k}, or lower loss_top_k={top_k}"
            ) from error
        raise


def _agreement(servers: Servers, model: str, found: preflight.Probe, notes: list[str]) -> preflight.Repeat:
    """How well scores repeat, on the first server and between all of them."""
    plain = preflight.Question(found.question.ids, found.question.start)
    repeat = preflight.difference(found.answer, preflight.ask(servers, servers.urls[0], model, plain))
    notes.append(f"scores repeat to {repeat.largest:.2g} nats a token, {repeat.mean:.2g} on average")
    for url in servers.urls[1:]:
        apart = preflight.difference(found.answer, preflight.ask(servers, url, model, plain))
        if apart.mean > preflight.SAME_WEIGHTS + 5 * repeat.mean:
            raise TeacherServerError(
                f"{url} scores a text {apart.mean:.2f} nats a token away from {servers.urls[0]}: they serve different "
                "weights; start both with the same model"
            )
        notes.append(f"{url} agrees with it to {apart.largest:.2g} nats a token")
    return repeat


def _check_temperature(
    servers: Servers, settings: Any, model: str, found: preflight.Probe, need: str, notes: list[str]
) -> None:
    if settings.temperature == 1 or need == "chosen":  # which was checked: it needs no normaliser
        return
    for url in servers.urls:
        if not preflight.heeds_temperature(servers, url, model, found, settings.temperature):
            raise ConfigurationError(
                f"{url} scores at temperature 1 whatever is asked, and this run samples at temperature="
                f"{settings.temperature}; set temperature=1, use estimator='vopd_sparse', which needs no "
                "normaliser of the teacher, load the teacher in this process, or start a server whose version applies "
                "the temperature to prompt_logprobs (vLLM 0.32 does not, with any --logprobs-mode)"
            )
    notes.append(f"temperature {settings.temperature} is heeded")

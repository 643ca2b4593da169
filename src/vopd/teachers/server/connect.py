"""Connects to teacher servers, and refuses servers that cannot provide the required scores before the first rollout."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from vopd.errors import ConfigurationError, MismatchError
from vopd.estimators import Estimator
from vopd.estimators.checks import check_gives

from .client import Patience, Servers
from .preflight import Findings, inspect_servers
from .settings import check_server, use_unnormalised
from .teacher import ServerTeacher

logger = logging.getLogger("vopd")


def connect(
    args: Any, *, tokenizer: Any, compared: bool, vocab_size: int, prompt: Sequence[int], end_ids: Sequence[int]
) -> tuple[ServerTeacher, list[str]]:
    """Check the servers at ``args.teacher_server_url`` and return the teacher on them, and notes on the checks.

    Args:
        args: a VOPDConfig.
        tokenizer: the student's tokenizer.
        compared: whether the teacher's own tokenizer was already compared with it.
        vocab_size: number of ids that the tokenizers of student and teacher share.
        prompt: ids of a training prompt, for the server to continue.
        end_ids: the student's EOS ids.

    Raises:
        TeacherServerError: no server responds, or not with the scores that were requested.
        MismatchError: its vocabulary differs from the student's.
        ConfigurationError: it does not provide what the estimator or the temperature needs.
    """
    check_server(args)
    need = args.chosen_estimator.need
    servers = Servers(
        args.teacher_server_url,
        key_env=args.teacher_server_key_env,
        concurrency=args.teacher_server_concurrency,
        patience=Patience(args.teacher_server_timeout, args.teacher_server_deadline, args.teacher_server_retries),
    )
    try:
        found = inspect_servers(servers, args.teacher_server_model, tokenizer, prompt, vocab_size, end_ids)
        _check_vocabulary(found, compared)
        _check_scores(found, args.chosen_estimator, args.loss_top_k, args.temperature)
    except Exception:
        servers.close()
        raise
    shared = found.model.vocab_size
    if found.end_id is not None and shared is not None and found.end_id >= shared:
        servers.close()
        raise MismatchError(
            f"the teacher ended a text with id {found.end_id}, which is not among the {shared} ids that it shares with "
            "the student: nothing would teach the student to stop; use another teacher"
        )
    if found.end_id is not None and found.end_id not in end_ids:
        logger.warning(
            f"the teacher ends completions with {found.end_id} ({tokenizer.convert_ids_to_tokens(found.end_id)}), but "
            "this is not an EOS token of the student, which would run on to the length limit; set the student's "
            f"generation_config.eos_token_id = {sorted({*end_ids, found.end_id})}"
        )
    teacher = ServerTeacher(
        found.model,
        need=need,
        gives=frozenset({"sampled", need}),
        top_k=args.loss_top_k or 0,
        temperature=args.temperature,
        drop=args.teacher_failure == "drop",
        check=found.check_weights,
        positions=None if found.length is None else found.length - 1,  # scoring a sequence takes one token more
    )
    return teacher, _notes(found)


def _check_vocabulary(found: Findings, compared: bool) -> None:
    for url, common in found.same_ids.items():
        if common is None and not compared:
            raise MismatchError(
                f"{url} has no /detokenize, so its vocabulary cannot be compared with the student's; set teacher_model "
                "to the teacher's folder or hub id, whose tokenizer is compared instead"
            )


def _check_scores(found: Findings, estimator: Estimator, top_k: int | None, temperature: float) -> None:
    if estimator.need == "top_k" and top_k:
        given, refusal = found.most_top_k([top_k])
        if not given:
            raise ConfigurationError(f"{refusal}; start it with --max-logprobs {top_k}, or lower loss_top_k={top_k}")
    if estimator.need == "chosen":  # needs no normalizer: the client divides the scores by the temperature
        if refusal := found.refusal_of_chosen():
            check_gives(estimator, {"sampled", "top_k"}, f"the server ({refusal})")
        return
    for url in found.untempered(temperature):
        raise ConfigurationError(
            f"{url} ignores the requested temperature and scores at temperature 1, but this run samples at "
            f"temperature={temperature}; set temperature=1, {use_unnormalised()}, load the teacher in the training "
            "process, or use a server version that applies the temperature to prompt_logprobs (vLLM 0.32 does not, "
            "with any --logprobs-mode)"
        )


def _notes(found: Findings) -> list[str]:
    notes = []
    for url, repeat in found.repeats.items():
        ids = found.same_ids[url] or "compared only with the tokenizer of teacher_model"
        repeats = f"scores repeat to within {repeat.max():.2g} nats/token, {repeat.mean():.2g} on average"
        notes.append(f"{url}: {found.model.name}; vocabulary: {ids}; {repeats}")
    return notes

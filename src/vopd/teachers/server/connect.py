"""Connects to teacher servers, and refuses servers that cannot provide what is required before the first rollout."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vopd.errors import ConfigurationError, MismatchError
from vopd.estimators import Estimator
from vopd.estimators.checks import check_gives
from vopd.kernels import Head
from vopd.models import CommonVocabulary
from vopd.models.head_files import load_head

from .client import Patience, Servers
from .discovery import Found, find_model, pooling_servers
from .engines.base import ABSENT
from .preflight import (
    Findings,
    by_scores,
    by_states,
    compare_ids,
    measured,
    most_top_k,
    refusal_of_chosen,
    untempered,
    written,
)
from .refusals import Rejected
from .same_distribution import check_distribution, text_of
from .settings import HIDDEN_STATES, SCORES, check_chosen, use_unnormalised
from .teacher import ServerScores, ServerStates, ServerTeacher

logger = logging.getLogger("vopd")


@dataclass(frozen=True)
class Files:
    """The teacher's own files, beside its servers.

    Attributes:
        path: local folder or hub id.
        revision: branch, tag or commit of a hub id.
    """

    path: str
    revision: str | None = None


@dataclass(frozen=True)
class Pupil:
    """What servers are checked against.

    Attributes:
        tokenizer: the student's tokenizer.
        vocab_size: number of ids that the tokenizers of student and teacher share.
        end_ids: the student's EOS ids.
        prompt: ids of a training prompt.
        device: where the loss is computed.
        first: whether this is the first process of the run, which alone reads the teacher's files.
    """

    tokenizer: Any
    vocab_size: int
    end_ids: Sequence[int]
    prompt: Sequence[int]
    device: torch.device
    first: bool = True


def connect(args: Any, files: Files | None, pupil: Pupil) -> tuple[ServerTeacher[Any], list[str]]:
    """Check the servers at ``args.teacher_server_url`` and return the teacher on them, and notes on the checks.

    Args:
        args: a VOPDConfig.
        files: the teacher's files, whose tokenizer was already compared; None if they are not known.
        pupil: the student's side.

    Raises:
        TeacherServerError: no server responds, or not with what was requested.
        MismatchError: its vocabulary differs from the student's, or its hidden states do not fit the output head.
        ConfigurationError: it does not provide what the estimator or the temperature needs.
    """
    servers = Servers(
        args.teacher_server_url,
        key_env=args.teacher_server_key_env,
        concurrency=args.teacher_server_concurrency,
        patience=Patience(args.teacher_server_timeout, args.teacher_server_deadline, args.teacher_server_retries),
    )
    try:
        found = find_model(servers, args.teacher_server_model)
        model, same_ids = compare_ids(found.model, pupil.tokenizer, pupil.vocab_size, pupil.end_ids)
        _check_compared(same_ids, files is not None)
        found, payload = replace(found, model=model), args.teacher_server_payload
        # A server that gives both is asked for scores where no output head is known to make more of its states.
        scores = payload == SCORES or (files is None and model.engine.states_with_scores)
        widths, refusal = ({}, "") if scores else pooling_servers(model, text_of(pupil.prompt, model))
        if not widths and payload == HIDDEN_STATES:
            raise ConfigurationError(refusal)
        if not widths:
            return _with_scores(args, found, same_ids, pupil, refusal)
        return _with_states(args, found, same_ids, pupil, files, widths)
    except BaseException:
        servers.close()
        raise


def _with_scores(
    args: Any, found: Found, same_ids: dict[str, CommonVocabulary | None], pupil: Pupil, refusal: str
) -> tuple[ServerTeacher[Any], list[str]]:
    """The teacher on servers that generate; `refusal` says why they give no hidden states."""
    estimator = args.chosen_estimator
    check_gives(
        estimator, {"sampled", "top_k", "chosen"}, f"the server ({refusal})" if refusal else "a server's scores"
    )
    check_chosen(args)
    try:
        text, end_id = written(found.model, pupil.prompt)
        findings = measured(found.model, text, by_scores)
    except Rejected as error:
        if error.status not in ABSENT:
            raise
        raise ConfigurationError(
            f"{error}: it gives no scores; start it without --runner pooling; if it gives hidden states, "
            "set teacher_server_payload=hidden_states and teacher_model instead"
        ) from error
    _check_scores(findings, estimator, args.loss_top_k, args.temperature)
    _check_end(end_id, found.model.vocab_size, pupil)
    teacher = ServerScores(
        found.model,
        estimator.need,
        args.loss_top_k or 0,
        args.temperature,
        drop=args.teacher_failure == "drop",
        check=findings.check_weights,
        positions=None if found.length is None else found.length - found.model.engine.spare_of_scores,
    )
    return teacher, _notes(findings, same_ids)


def _with_states(
    args: Any,
    found: Found,
    same_ids: dict[str, CommonVocabulary | None],
    pupil: Pupil,
    files: Files | None,
    widths: dict[str, int],
) -> tuple[ServerTeacher[Any], list[str]]:
    """The teacher on the servers of `widths`, which give hidden states; others only score a text to compare with."""
    if files is None:
        raise ConfigurationError(
            f"{next(iter(widths))} gives hidden states, which need the teacher's output head: set teacher_model (with "
            "several teachers: model beside server_url) to the teacher's folder or hub id, from which the head alone "
            f"is read{f'; the server lists {found.path}' if found.path else ''}"
        )
    head = _head_of(files, widths, None if args.teacher_offload else pupil.device)
    engine, urls = found.model.engine, found.model.servers.urls
    scoring = urls if engine.states_with_scores else [url for url in urls if url not in widths]
    model, others = (replace(found.model, servers=found.model.servers.only(part)) for part in (list(widths), scoring))
    dtype = getattr(torch, args.teacher_server_dtype)
    findings = measured(model, text_of(pupil.prompt, model), by_states(head, dtype))
    notes = _notes(findings, same_ids)
    if pupil.first:
        notes.append(check_distribution(findings, files.path, files.revision, others))
    teacher = ServerStates(
        model,
        head,
        dtype,
        drop=args.teacher_failure == "drop",
        check=findings.check_weights,
        positions=None if found.length is None else found.length - engine.spare_of_states,
    )
    return teacher, notes


def _head_of(files: Files, widths: dict[str, int], device: torch.device | None) -> Head:
    """The teacher's output head from its files, on a device; None keeps it on the host, in memory for fast copies."""
    head = load_head(files.path, files.revision)
    check_width(head, widths, files.path)
    if device is not None:
        return head.to(device)
    return head.map(torch.Tensor.pin_memory) if torch.cuda.is_available() else head


def check_width(head: Head, widths: Mapping[str, int], path: str) -> None:
    """Raises MismatchError if a server, by address, has hidden states of another width than the head from `path`."""
    for url, width in widths.items():
        if width != head.weight.size(1):
            raise MismatchError(
                f"{url} gives hidden states of width {width}, but the output head of {path} has width "
                f"{head.weight.size(1)}; set teacher_model to the model that is served"
            )


def _check_compared(same_ids: dict[str, CommonVocabulary | None], named: bool) -> None:
    for url, common in same_ids.items():
        if common is None and not named:
            raise MismatchError(
                f"{url} has no /detokenize, so its vocabulary cannot be compared with the student's; set teacher_model "
                "to the teacher's folder or hub id, whose tokenizer is compared instead"
            )


def _check_scores(found: Findings, estimator: Estimator, top_k: int | None, temperature: float) -> None:
    if estimator.need == "top_k" and top_k:
        given, refusal = most_top_k(found, [top_k])
        if not given:
            raise ConfigurationError(f"{refusal}; start it with --max-logprobs {top_k}, or lower loss_top_k={top_k}")
    if estimator.need == "chosen":  # needs no normalizer: the client divides the scores by the temperature
        if refusal := refusal_of_chosen(found):
            check_gives(estimator, {"sampled", "top_k"}, f"the server ({refusal})")
        return
    for url in untempered(found, temperature):
        raise ConfigurationError(
            f"{url} ignores the requested temperature and scores at temperature 1, but this run samples at "
            f"temperature={temperature}; set temperature=1, {use_unnormalised()}, load the teacher in the training "
            f"process, or serve its hidden states ({found.model.engine.start_states}); vLLM 0.32 does not apply it to "
            "prompt_logprobs, with any --logprobs-mode"
        )


def _check_end(end_id: int | None, shared: int | None, pupil: Pupil) -> None:
    """Check the id that ended a text of the teacher."""
    if end_id is not None and shared is not None and end_id >= shared:
        raise MismatchError(
            f"the teacher ended a text with id {end_id}, which is not among the {shared} ids that it shares with "
            "the student: nothing would teach the student to stop; use another teacher"
        )
    if end_id is not None and end_id not in pupil.end_ids:
        logger.warning(
            f"the teacher ends completions with {end_id} ({pupil.tokenizer.convert_ids_to_tokens(end_id)}), but "
            "this is not an EOS token of the student, which would run on to the length limit; set the student's "
            f"generation_config.eos_token_id = {sorted({*pupil.end_ids, end_id})}"
        )


def _notes(found: Findings, same_ids: dict[str, CommonVocabulary | None]) -> list[str]:
    notes = []
    for url, repeat in found.repeats.items():
        ids = same_ids[url] or "compared only with the tokenizer of teacher_model"
        repeats = f"scores repeat to within {repeat.max():.2g} nats/token, {repeat.mean():.2g} on average"
        notes.append(f"{url}: {found.model.name}; vocabulary: {ids}; {repeats}")
    return notes

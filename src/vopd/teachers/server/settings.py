"""Settings of a teacher on a server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vopd.errors import ConfigurationError, check_known
from vopd.estimators import ESTIMATORS
from vopd.estimators.checks import check_gives
from vopd.estimators.teacher_scores import ScoreKind

from .addresses import checked_urls
from .keys import check_key_name

AUTO, SCORES, HIDDEN_STATES = "auto", "scores", "hidden_states"
PAYLOADS = (AUTO, SCORES, HIDDEN_STATES)
DTYPES = ("bfloat16", "float16", "float32")
_SCORES: frozenset[ScoreKind] = frozenset({"sampled", "top_k", "chosen"})


def own(value: Any, help_text: str) -> Any:
    """A field that vopd adds to TRL's configuration, with its default and help text."""
    return field(default=value, metadata={"help": help_text})


@dataclass
class ServerSettings:
    """Settings of a teacher on a server: its address, timeouts, retries, and what to do when retries run out.

    Args:
        teacher_server_url: address of a vLLM or SGLang server, or of several with the same model, to ask instead of a
            local teacher. ``teacher_model`` then names the files whose tokenizer and EOS tokens are compared, and whose
            output head is read for hidden states.
        teacher_server_payload: what the server is asked for: "scores" of some ids, from a server that generates;
            "hidden_states", from one that pools per token, which give the full distribution with the output head of
            ``teacher_model``; "auto" asks the server what it is.
        teacher_server_dtype: dtype of hidden states on the way: "bfloat16", "float16" or "float32".
        teacher_server_model: the teacher's name on the server. Default: the only model served.
        teacher_server_key_env: name of the environment variable with the server's API key, if it requires one.
        teacher_server_concurrency: concurrent requests.
        teacher_server_timeout: seconds that one attempt may take.
        teacher_server_deadline: seconds for all attempts to score one completion.
        teacher_server_retries: attempts after the first, with pauses that double.
        teacher_failure: what to do if a completion gets no usable scores and retries run out: "raise" ends the run,
            "drop" leaves the completion out of the step's gradient and counts it.
        teacher_drop_limit: largest share of dropped completions over the last 50 steps (counted as at least 100
            completions); above it, the run saves a checkpoint and ends.
    """

    # In the order that HfArgumentParser depends on.
    teacher_server_url: None | str | list[str] = own(  # noqa: RUF036
        None, "Address of a vLLM or SGLang server that serves the teacher, or several addresses."
    )
    teacher_server_model: str | None = own(None, "The teacher's name on the server. Default: the only model served.")
    teacher_server_payload: str = own(
        "auto",
        "What the server gives: scores of some ids, hidden_states (the full distribution), or auto: it is asked.",
    )
    teacher_server_dtype: str = own("bfloat16", "Hidden states on the way: bfloat16, float16 or float32.")
    teacher_server_key_env: str = own("TEACHER_API_KEY", "Environment variable with the server's API key, if needed.")
    teacher_server_concurrency: int = own(32, "Concurrent requests to the teacher server.")
    teacher_server_timeout: float = own(120.0, "Timeout of one request, in seconds.")
    teacher_server_deadline: float = own(600.0, "Seconds for all attempts to score one completion.")
    teacher_server_retries: int = own(8, "Retries of a failed request, with increasing pauses.")
    teacher_failure: str = own(
        "raise", "When retries run out: raise ends the run, drop leaves the completion out of the step."
    )
    teacher_drop_limit: float = own(0.1, "Share of dropped completions above which the run saves and ends.")


def check_server(args: Any) -> None:
    """Check the settings of a teacher server against each other.

    Args:
        args: a VOPDConfig.

    Raises:
        ConfigurationError: a setting is out of range, or has no effect.
    """
    check_known("teacher_failure", args.teacher_failure, ("raise", "drop"))
    check_known("teacher_server_payload", args.teacher_server_payload, PAYLOADS)
    check_known("teacher_server_dtype", args.teacher_server_dtype, DTYPES)
    if not 0 <= args.teacher_drop_limit <= 1:
        raise ConfigurationError(f"teacher_drop_limit must be from 0 to 1, got {args.teacher_drop_limit}; try 0.1")
    check_key_name(args.teacher_server_key_env)
    if args.teacher_server_url is None:
        return
    checked_urls(args.teacher_server_url)
    if args.teacher_model_init_kwargs is not None:
        raise ConfigurationError("teacher_model_init_kwargs has no effect on a teacher on a server; remove it")


def check_payload(args: Any, files: bool) -> None:
    """Check that some server could provide what the run needs; ``connect`` later tests what this one provides.

    Args:
        args: a VOPDConfig.
        files: whether the teacher's own files are named.

    Raises:
        ConfigurationError: none could.
    """
    if files and args.teacher_server_payload != SCORES:
        return  # hidden states are everything
    if args.teacher_server_payload == HIDDEN_STATES:
        raise ConfigurationError(
            "teacher_server_payload=hidden_states needs the teacher's output head; set teacher_model to the teacher's "
            "folder or hub id, from which the head alone is read"
        )
    check_gives(args.chosen_estimator, _SCORES, "a server that gives scores")
    check_chosen(args)


def sends_states(args: Any) -> bool:
    """Whether a server whose teacher's files are named has to send hidden states: it is set, or the estimator works
    with nothing less.

    With teacher_server_payload=auto a server may send them to every estimator, which only it can tell.
    """
    if args.teacher_server_payload == HIDDEN_STATES:
        return True
    return args.teacher_server_payload != SCORES and args.chosen_estimator.need not in _SCORES


def check_chosen(args: Any) -> None:
    """Raises ConfigurationError if the scores of chosen ids are not enough for an estimator that needs them."""
    estimator = args.chosen_estimator
    if estimator.need != "chosen":
        return
    if args.teacher_failure == "drop":
        raise ConfigurationError(
            f"teacher_failure=drop does not work with estimator {estimator.name!r}: its scores are requested one "
            "micro-batch at a time, after the tokens of the whole step were counted; use teacher_failure=raise"
        )
    if args.temperature != 1 and estimator.needs.full_teacher:
        raise ConfigurationError(
            f"estimator {estimator.name!r} needs scores at temperature={args.temperature}, but a server scores chosen "
            f"ids at temperature 1; set temperature=1, or {use_unnormalised()}"
        )


def use_unnormalised() -> str:
    """Advice for a server that scores only at temperature 1."""
    found = (e.name for e in ESTIMATORS.values() if e.need == "chosen" and e.unbiased and not e.needs.full_teacher)
    return f"use estimator={' or '.join(map(repr, found))}, which does not need normalized teacher scores"

"""Settings of a teacher behind a server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vopd.errors import ConfigurationError, check_known
from vopd.estimators import ESTIMATORS, Estimator
from vopd.estimators.checks import check_gives

from .client import checked_urls


def own(value: Any, help_text: str) -> Any:
    """A field of vopd's own with its default and help, beside those that are TRL's."""
    return field(default=value, metadata={"help": help_text})


@dataclass
class ServerSettings:
    """Where the teacher's server is, and how to get along with it.

    Args:
        teacher_server_url: address, or several of the same model, of a vLLM server that scores instead of a teacher
            in this process. ``teacher_model`` then only names the tokenizer and the end tokens to compare.
        teacher_server_model: what the server calls the teacher. Default: the only model that it serves.
        teacher_server_key_env: name of the environment variable that holds the server's key, if it wants one.
        teacher_server_concurrency: requests under way at once.
        teacher_server_timeout: seconds that one attempt may take.
        teacher_server_deadline: seconds for all attempts to score one completion.
        teacher_server_retries: attempts after the first, with pauses that double.
        teacher_failure: what follows when a completion gets no usable scores: "raise" ends the run, "drop" leaves the
            completion out of the step's gradient and counts it.
        teacher_drop_limit: share of completions dropped over the last 50 steps (and at least 100 completions) past
            which the run saves a checkpoint and ends.
    """

    # In the order that HfArgumentParser depends on.
    teacher_server_url: None | str | list[str] = own(  # noqa: RUF036
        None, "Address of a vLLM server with the teacher, or several."
    )
    teacher_server_model: str | None = own(None, "Its name of the teacher. Default: the only model that it serves.")
    teacher_server_key_env: str = own("TEACHER_API_KEY", "Environment variable that holds its key, if it wants one.")
    teacher_server_concurrency: int = own(32, "Requests to it under way at once.")
    teacher_server_timeout: float = own(120.0, "Seconds that one request may take.")
    teacher_server_deadline: float = own(600.0, "Seconds for all attempts to score one completion.")
    teacher_server_retries: int = own(8, "Attempts after the first, with growing pauses.")
    teacher_failure: str = own("raise", "Where a completion gets no usable scores: raise, or drop it from the step.")
    teacher_drop_limit: float = own(0.1, "Share of dropped completions past which the run saves and ends.")


def check_server(args: Any) -> None:
    """Check the settings of a teacher server against each other and against those of the run.

    What a server can give at all is known here; what this one gives is tried when the trainer is made.

    Args:
        args: a VOPDConfig.

    Raises:
        ConfigurationError: one is out of range, or two do not go together.
    """
    check_known("teacher_failure", args.teacher_failure, ("raise", "drop"))
    if not 0 <= args.teacher_drop_limit <= 1:
        raise ConfigurationError(f"teacher_drop_limit is a share from 0 to 1, got {args.teacher_drop_limit}; try 0.1")
    if args.teacher_server_url is None:
        return
    checked_urls(args.teacher_server_url)
    if args.teacher_model_init_kwargs is not None:
        raise ConfigurationError("teacher_model_init_kwargs means nothing to a teacher behind a server; remove it")
    check_gives(args.chosen_estimator, {"sampled", "top_k", "chosen"}, "a server")
    if args.chosen_estimator.need == "chosen":
        _check_chosen(args.chosen_estimator, args.teacher_failure, args.temperature)


def _check_chosen(estimator: Estimator, failure: str, temperature: float) -> None:
    if failure == "drop":
        raise ConfigurationError(
            f"teacher_failure=drop does not go with estimator {estimator.name!r}: its scores are asked for one "
            "micro-batch at a time, after the tokens of the whole step were counted; use raise"
        )
    if temperature != 1 and estimator.needs.full_teacher:
        raise ConfigurationError(
            f"estimator {estimator.name!r} needs scores at temperature={temperature}, and a server scores chosen ids "
            f"at temperature 1; set temperature=1, or {use_unnormalised()}"
        )


def use_unnormalised() -> str:
    """The advice for a server that scores at temperature 1 alone."""
    found = (e.name for e in ESTIMATORS.values() if e.need == "chosen" and e.unbiased and not e.needs.full_teacher)
    return f"use estimator={' or '.join(map(repr, found))}, which needs no normaliser of the teacher"

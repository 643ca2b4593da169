"""Checks that hidden states of a server and the teacher's output head give the teacher's own distribution."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from itertools import takewhile

from vopd.errors import MismatchError
from vopd.models.layer_by_layer import NotComparable, logprobs_from_files
from vopd.placement import loaded_apart

from .preflight import SAME_WEIGHTS, Findings, by_scores
from .questions import Question
from .served import ServedModel

logger = logging.getLogger("vopd")

_TEXT = 64
"""Most tokens of a text: each has a row of the whole vocabulary."""
_WRONG = 0.5
"""Nats/token on average: precision and quantization make less, another head more."""


def text_of(prompt: Sequence[int], model: ServedModel) -> Question:
    """The beginning of a prompt, with ids that all servers know; every token but the first is scored."""
    limit = math.inf if model.vocab_size is None else model.vocab_size
    ids = tuple(takewhile(lambda token: token < limit, prompt[:_TEXT]))
    return Question(ids if len(ids) > 1 else (*ids, 0, 1), 1)


def check_distribution(found: Findings, path: str, revision: str | None, others: ServedModel) -> str:
    """Compare log-probabilities from the servers' states with what the teacher says otherwise; returns a note.

    Args:
        found: the text and its log-probabilities, from states and head.
        path, revision: the teacher's files, which are read layer by layer if they are on this machine.
        others: the model on servers that generate, if there are any: the first one is asked instead.

    Raises:
        MismatchError: they are those of another distribution: the head does not belong to the states.
    """
    try:
        if others.servers.urls:
            what = others.servers.urls[0]
            own = by_scores(others, found.text, what)
        else:
            what = f"the files of {path}"
            logger.info(f"comparing the server with {what}, read layer by layer where they are on this machine")
            with loaded_apart():
                own = logprobs_from_files(path, found.text.ids, found.text.start, revision)
    except NotComparable as error:
        return _uncompared(found, path, str(error))
    apart = float((own - found.scores).abs().mean())
    said = f"hidden states and output head differ from {what} by {apart:.2g} nats/token on average"
    if apart > _WRONG:
        raise MismatchError(f"{said}: they are not of one model; set teacher_model to the model that is served")
    if apart > SAME_WEIGHTS:
        logger.warning(
            f"{said}: the server rounds more (quantization), or has slightly other weights, such as an adapter's"
        )
    return said


def _uncompared(found: Findings, path: str, reason: str) -> str:
    """The note where nothing can be compared, with what a reader may judge: whether a prompt is better than chance."""
    assert found.model.vocab_size is not None
    mean, chance = float(found.scores.mean()), -math.log(found.model.vocab_size)
    said = (
        f"hidden states and the output head of {path} were not compared with the teacher's own scores, because "
        f"{reason}; a prompt gets {mean:.1f} nats/token with them (chance: {chance:.1f})"
    )
    if mean < chance:
        logger.warning(
            f"with the output head of {path} a prompt gets {mean:.1f} nats/token, less than by chance: check that "
            "it is the model that is served"
        )
    return said

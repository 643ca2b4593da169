"""Checks of what callers hand to the loss functions: one clear line each, naming the fix."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vopd.errors import ConfigurationError
from vopd.kernels import Estimate, Rows
from vopd.user_code import told_with_place

from .base import Estimator
from .catalogue import ESTIMATORS
from .teacher_scores import ScoreKind, TopKScores

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Shaped

_NEEDS: dict[ScoreKind, str] = {
    "sampled": "the score of each sampled token",
    "top_k": "the scores of the teacher's own top k",
    "chosen": "the teacher's scores at the student's top k",
    "full": "the teacher's whole rows",
}


def check_teacher(estimator: Estimator, teacher: Shaped[Tensor, " ..."] | None, scores: TopKScores | None) -> None:
    """Exactly one of teacher tensors and server scores, and scores only where they are enough."""
    if (teacher is None) == (scores is None):
        raise ConfigurationError("give either the teacher's tensors or teacher_scores, with the other one None")
    if scores is None:
        return
    held: tuple[ScoreKind, ...] = ("sampled", "chosen") if scores.chosen else ("sampled", "top_k")
    if estimator.need not in held:
        able = ", ".join(other.name for other in ESTIMATORS.values() if other.need in held)
        whose = "the student's" if scores.chosen else "its own"
        raise ConfigurationError(
            f"{estimator.name} needs more of the teacher than its scores at {whose} top k; with these use {able}"
        )


def check_gives(estimator: Estimator, gives: Collection[ScoreKind], teacher: str = "the teacher") -> None:
    """Raises ConfigurationError, naming alternatives, unless what a teacher gives is enough for the estimator."""
    if estimator.need in gives:
        return
    able = [other.name for other in ESTIMATORS.values() if other.need in gives]
    raise ConfigurationError(
        f"estimator {estimator.name!r} needs {_NEEDS[estimator.need]}, which {teacher} does not give; "
        + (f"choose one that works from what it gives: {', '.join(able)}; or load the teacher in this process"
           if able else "load the teacher in this process")
    )  # fmt: skip


def resolve_top_k(estimator: Estimator, top_k: int | None, scores: TopKScores | None, vocab_size: int) -> int:
    """The k of the estimator's support; 1 for estimators without one."""
    if not estimator.needs_top_k:
        if top_k is not None:
            raise ConfigurationError(f"{estimator.name} has no top_k: leave it out")
        return 1
    if scores is not None:
        return _scores_top_k(estimator, top_k, scores)
    if top_k is None:
        raise ConfigurationError(f"{estimator.name} needs top_k, for example top_k=20")
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise ConfigurationError(f"top_k must be a positive integer, not {top_k!r}")
    check_top_k("top_k", top_k, vocab_size)
    return top_k


def check_top_k(name: str, top_k: int | None, vocab_size: int) -> None:
    """The k, where there is one, is not more than the tokens there are; `name` is the caller's argument."""
    if top_k is not None and top_k > vocab_size:
        raise ConfigurationError(f"{name}={top_k} is more than the vocabulary of {vocab_size} tokens; lower it")


def _scores_top_k(estimator: Estimator, top_k: int | None, scores: TopKScores) -> int:
    if scores.top_k_ids is None or scores.top_k_logprobs is None:
        raise ConfigurationError(f"{estimator.name} needs top_k_ids and top_k_logprobs in teacher_scores")
    held = scores.top_k_ids.shape[-1]
    if top_k is not None and top_k != held:
        raise ConfigurationError(f"top_k = {top_k}, but teacher_scores hold {held} tokens a position")
    return held


def checked_estimate(estimator: Estimator, rows: Rows) -> Estimate:
    """What the estimator makes of N rows: one number a token, or broadcasting would give another gradient.

    Raises:
        ConfigurationError: it fails, or returns something else.
    """
    try:
        found = estimator.estimate(rows)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a user's function raises
        raise ConfigurationError(f"estimator {estimator.name!r} fails: {told_with_place(error)}") from error
    if not isinstance(found, Estimate):
        raise ConfigurationError(
            f"estimator {estimator.name!r} returns a {type(found).__name__}, not an Estimate: end it with "
            "policy_gradient(rows, advantages, baseline)"
        )
    form, like = found.form, rows.student_logprobs
    # What a user wrote first, then what follows from it.
    numbers = {"advantages": found.advantages, "baseline": found.baseline, "loss": found.loss, "a": form.a, "b": form.b}
    for name, tensor in numbers.items():
        if tensor is not None and (tensor.shape, tensor.dtype) != (like.shape, like.dtype):
            raise ConfigurationError(
                f"estimator {estimator.name!r}: {name} has shape {tuple(tensor.shape)} in {tensor.dtype}, expected "
                f"{tuple(like.shape)} in {like.dtype}, one number a token"
            )
    if form.values.dtype != like.dtype or form.ids.shape != form.values.shape or form.ids.shape[:-1] != like.shape:
        raise ConfigurationError(
            f"estimator {estimator.name!r}: ids and values have shapes {tuple(form.ids.shape)} and "
            f"{tuple(form.values.shape)} in {form.values.dtype}, expected ({len(like)}, J) in {like.dtype}"
        )
    return found


def common_vocabulary(student_rows: int, teacher_rows: int | None, vocab_size: int | None) -> int:
    """How many tokens both models have; never padded, since padding with zeros would give columns mass."""
    common = student_rows if teacher_rows is None else min(student_rows, teacher_rows)
    if vocab_size is None:
        return common
    if not 1 <= vocab_size <= common:
        raise ConfigurationError(f"vocab_size = {vocab_size}, but the smaller model has {common} output rows")
    return vocab_size


def check_leading(name: str, tensor: Shaped[Tensor, " ..."] | None, shape: torch.Size, trailing: int = 0) -> None:
    """The tensor's shape is that of the completion ids, with ``trailing`` more dimensions."""
    if tensor is None:
        return
    leading = tensor.shape[: tensor.ndim - trailing]
    if tensor.ndim < trailing or leading != shape:
        extra = ", ·" * trailing
        wanted = f"({', '.join(map(str, shape))}{extra})"
        raise ConfigurationError(f"{name} has shape {tuple(tensor.shape)}, expected {wanted} to fit completion_ids")


def check_ids(ids: Shaped[Tensor, " ..."], vocab_size: int, name: str) -> None:
    """Every id that counts is a token of the vocabulary."""
    if bool(_outside(ids, vocab_size)):
        raise ConfigurationError(
            f"{name} has ids outside the common vocabulary of {vocab_size} tokens (from {ids.min()} to {ids.max()})"
        )


def _outside(ids: Shaped[Tensor, " ..."], vocab_size: int) -> Bool[Tensor, ""]:
    return ((ids < 0) | (ids >= vocab_size)).any()


def checked_top_k_ids(
    ids: Shaped[Tensor, " ..."], logprobs: Shaped[Tensor, " ..."], vocab_size: int
) -> Int[Tensor, "N k"]:
    """A server's top k ids, (N, k), with 0 for those of absent entries (-inf), which mean nothing. One look at the
    device.

    Raises:
        ConfigurationError: the shapes differ, an id is no token of the vocabulary, or a token comes twice, which would
            count its mass twice.
    """
    if ids.shape != logprobs.shape:
        raise ConfigurationError("top_k_ids and top_k_logprobs of teacher_scores differ in shape")
    absent = logprobs == -torch.inf
    known = ids.masked_fill(absent, 0)
    # Numbers of their own below 0 keep absent entries from being each other's repeats.
    fillers = -1 - torch.arange(ids.shape[-1], device=ids.device)
    ordered = torch.where(absent, fillers, known).sort(dim=-1).values
    outside, twice = torch.stack([_outside(known, vocab_size), (ordered[..., 1:] == ordered[..., :-1]).any()]).tolist()
    if outside:
        check_ids(known, vocab_size, "top_k_ids")
    if twice:
        raise ConfigurationError("top_k_ids of teacher_scores name a token twice at one position: leave one out")
    return known


def check_head(model: str, hidden: Shaped[Tensor, " ..."] | None, head: Shaped[Tensor, " ..."] | None) -> None:
    """The head has one row a token, as wide as the hidden states."""
    if (hidden is None) != (head is None):
        raise ConfigurationError(f"{model}_hidden and {model}_head go together")
    if hidden is not None and head is not None and (head.ndim != 2 or head.shape[-1] != hidden.shape[-1]):
        raise ConfigurationError(
            f"{model}_head has shape {tuple(head.shape)}, expected (vocabulary, {hidden.shape[-1]}) as {model}_hidden"
        )


def check_head_options(
    model: str, head: Shaped[Tensor, " ..."], bias: Shaped[Tensor, " ..."] | None, scale: float, softcap: float | None
) -> None:
    """A bias has one entry a row of the head; a logit scale and a soft cap are above 0."""
    if bias is not None and bias.shape != head.shape[:1]:
        raise ConfigurationError(f"{model}_bias has shape {tuple(bias.shape)}, expected ({len(head)},) as {model}_head")
    if not 0 < scale < float("inf"):
        raise ConfigurationError(f"{model}_logit_scale must be above 0, not {scale}; leave it out for 1")
    if softcap is not None and not 0 < softcap < float("inf"):
        raise ConfigurationError(f"{model}_softcap must be above 0, not {softcap}; leave it out for none")

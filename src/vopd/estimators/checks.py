"""Checks of the arguments of the loss functions; every error is a single line that names the fix."""

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
    "full": "the teacher's full distribution",
}


def check_teacher(estimator: Estimator, teacher: Shaped[Tensor, " ..."] | None, scores: TopKScores | None) -> None:
    """Check that exactly one of teacher tensors and server scores is given, and that scores are enough."""
    if (teacher is None) == (scores is None):
        raise ConfigurationError("pass either the teacher's tensors or teacher_scores, and None for the other")
    if scores is None:
        return
    held: tuple[ScoreKind, ...] = ("sampled", "chosen") if scores.chosen else ("sampled", "top_k")
    if estimator.need not in held:
        able = ", ".join(other.name for other in ESTIMATORS.values() if other.need in held)
        whose = "the student's" if scores.chosen else "its own"
        raise ConfigurationError(
            f"{estimator.name} needs more from the teacher than its scores at {whose} top k; with these use {able}"
        )


def check_gives(estimator: Estimator, gives: Collection[ScoreKind], teacher: str = "the teacher") -> None:
    """Raise ConfigurationError, naming alternatives, if the teacher's scores are not enough for the estimator."""
    if estimator.need in gives:
        return
    able = [other.name for other in ESTIMATORS.values() if other.need in gives]
    use = f"use an estimator that works with this teacher: {', '.join(able)}; or " if able else ""
    raise ConfigurationError(
        f"estimator {estimator.name!r} needs {_NEEDS[estimator.need]}, which {teacher} does not provide; {use}load the "
        "teacher in this process, or serve its hidden states and set teacher_model (with several teachers: model "
        "beside server_url)"
    )


def resolve_top_k(estimator: Estimator, top_k: int | None, scores: TopKScores | None, vocab_size: int) -> int:
    """Return k of the estimator's support; 1 for estimators without ``top_k``."""
    if not estimator.needs_top_k:
        if top_k is not None:
            raise ConfigurationError(f"{estimator.name} has no top_k; remove it")
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
    """Check that k, if given, is at most the size of the vocabulary; `name` is the caller's argument."""
    if top_k is not None and top_k > vocab_size:
        raise ConfigurationError(f"{name}={top_k} exceeds the vocabulary of {vocab_size} tokens; lower it")


def _scores_top_k(estimator: Estimator, top_k: int | None, scores: TopKScores) -> int:
    if scores.top_k_ids is None or scores.top_k_logprobs is None:
        raise ConfigurationError(f"{estimator.name} needs top_k_ids and top_k_logprobs in teacher_scores")
    held = scores.top_k_ids.shape[-1]
    if top_k is not None and top_k != held:
        raise ConfigurationError(f"top_k = {top_k}, but teacher_scores hold {held} tokens per position")
    return held


def checked_estimate(estimator: Estimator, rows: Rows) -> Estimate:
    """Run the estimator on N rows and check the shapes: broadcasting a wrong one would change the gradient.

    Raises:
        ConfigurationError: the estimator fails, or its result has a wrong type, shape or dtype.
    """
    try:
        found = estimator.estimate(rows)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a user's function raises
        raise ConfigurationError(f"estimator {estimator.name!r} fails: {told_with_place(error)}") from error
    if not isinstance(found, Estimate):
        raise ConfigurationError(
            f"estimator {estimator.name!r} returns a {type(found).__name__}, not an Estimate; return "
            "policy_gradient(rows, advantages, baseline)"
        )
    form, like = found.form, rows.student_logprobs
    # What the user computed comes first, then what follows from it.
    numbers = {"advantages": found.advantages, "baseline": found.baseline, "loss": found.loss, "a": form.a, "b": form.b}
    for name, tensor in numbers.items():
        if tensor is not None and (tensor.shape, tensor.dtype) != (like.shape, like.dtype):
            raise ConfigurationError(
                f"estimator {estimator.name!r}: {name} has shape {tuple(tensor.shape)} in {tensor.dtype}, expected "
                f"{tuple(like.shape)} in {like.dtype}: one number per token"
            )
    if form.values.dtype != like.dtype or form.ids.shape != form.values.shape or form.ids.shape[:-1] != like.shape:
        raise ConfigurationError(
            f"estimator {estimator.name!r}: ids and values have shapes {tuple(form.ids.shape)} and "
            f"{tuple(form.values.shape)} in {form.values.dtype}, expected ({len(like)}, J) in {like.dtype}"
        )
    return found


def common_vocabulary(student_rows: int, teacher_rows: int | None, vocab_size: int | None) -> int:
    """Return the number of tokens that both models have. Nothing is padded: zeros would give columns probability."""
    common = student_rows if teacher_rows is None else min(student_rows, teacher_rows)
    if vocab_size is None:
        return common
    if not 1 <= vocab_size <= common:
        raise ConfigurationError(f"vocab_size = {vocab_size}, but the smaller model has {common} output rows")
    return vocab_size


def check_leading(name: str, tensor: Shaped[Tensor, " ..."] | None, shape: torch.Size, trailing: int = 0) -> None:
    """Check that the tensor has the shape of the completion ids, plus ``trailing`` dimensions."""
    if tensor is None:
        return
    leading = tensor.shape[: tensor.ndim - trailing]
    if tensor.ndim < trailing or leading != shape:
        extra = ", ·" * trailing
        wanted = f"({', '.join(map(str, shape))}{extra})"
        raise ConfigurationError(f"{name} has shape {tuple(tensor.shape)}, expected {wanted} to match completion_ids")


def check_ids(ids: Shaped[Tensor, " ..."], vocab_size: int, name: str) -> None:
    """Check that the ids are in the vocabulary."""
    if bool(_outside(ids, vocab_size)):
        raise ConfigurationError(
            f"{name} has ids outside the common vocabulary of {vocab_size} tokens (from {ids.min()} to {ids.max()})"
        )


def _outside(ids: Shaped[Tensor, " ..."], vocab_size: int) -> Bool[Tensor, ""]:
    return ((ids < 0) | (ids >= vocab_size)).any()


def checked_top_k_ids(
    ids: Shaped[Tensor, " ..."], logprobs: Shaped[Tensor, " ..."], vocab_size: int
) -> Int[Tensor, "N k"]:
    """Return a server's top k ids, (N, k), with 0 in place of missing entries (-inf). Waits for the device once.

    Raises:
        ConfigurationError: the shapes differ, an id is outside the vocabulary, or a token occurs twice, which would
            count its probability twice.
    """
    if ids.shape != logprobs.shape:
        raise ConfigurationError("top_k_ids and top_k_logprobs of teacher_scores differ in shape")
    absent = logprobs == -torch.inf
    known = ids.masked_fill(absent, 0)
    # Distinct negative numbers, so that missing entries do not count as repeats of each other.
    fillers = -1 - torch.arange(ids.shape[-1], device=ids.device)
    ordered = torch.where(absent, fillers, known).sort(dim=-1).values
    outside, twice = torch.stack([_outside(known, vocab_size), (ordered[..., 1:] == ordered[..., :-1]).any()]).tolist()
    if outside:
        check_ids(known, vocab_size, "top_k_ids")
    if twice:
        raise ConfigurationError("top_k_ids of teacher_scores name a token twice at one position; remove one")
    return known


def check_head(model: str, hidden: Shaped[Tensor, " ..."] | None, head: Shaped[Tensor, " ..."] | None) -> None:
    """Check that the head has one row per token, as wide as the hidden states."""
    if (hidden is None) != (head is None):
        raise ConfigurationError(f"{model}_hidden and {model}_head go together: pass both or neither")
    if hidden is not None and head is not None and (head.ndim != 2 or head.shape[-1] != hidden.shape[-1]):
        raise ConfigurationError(
            f"{model}_head has shape {tuple(head.shape)}, expected (vocabulary, {hidden.shape[-1]}) to match "
            f"{model}_hidden"
        )


def check_head_options(
    model: str, head: Shaped[Tensor, " ..."], bias: Shaped[Tensor, " ..."] | None, scale: float, softcap: float | None
) -> None:
    """Check that the bias has one entry per row of the head, and that logit scale and soft cap are above 0."""
    if bias is not None and bias.shape != head.shape[:1]:
        raise ConfigurationError(
            f"{model}_bias has shape {tuple(bias.shape)}, expected ({len(head)},) to match {model}_head"
        )
    if not 0 < scale < float("inf"):
        raise ConfigurationError(f"{model}_logit_scale must be above 0, not {scale}; leave it out for 1")
    if softcap is not None and not 0 < softcap < float("inf"):
        raise ConfigurationError(f"{model}_softcap must be above 0, not {softcap}; leave it out for none")

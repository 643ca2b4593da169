"""Statistics of one chunk of rows, for any source of teacher scores: full rows, chosen ids, or a server."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vopd.functional import importance_weights
from vopd.functional.moments import not_none

from .logits import LogitSource
from .row_pass import MakePass, RowPass, Sums, Support
from .rows import Batch, GradientForm, Needs, Rows
from .support import top_k_ids

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Shaped


@dataclass(frozen=True)
class Chunk:
    """Statistics of a chunk of rows, and the pass that writes their gradient.

    Attributes:
        rows: the statistics that the estimator reads.
        row_pass: the pass, which owns the chunk's buffers.
        totals: row sums of exp(z - z_top) over the whole vocabulary, (C,).
        gradient_dtype: dtype of the gradient that the source takes.
    """

    rows: Rows
    row_pass: RowPass
    totals: Float[Tensor, " C"]
    gradient_dtype: torch.dtype

    def gradient(self, form: GradientForm) -> Float[Tensor, "C V"]:
        """Write the gradient over a buffer of the chunk and return it, (C, V); call once."""
        return self.row_pass.gradient(form, self.totals, self.gradient_dtype)


def compute_chunk(
    source: LogitSource, part: Batch, needs: Needs, top_k: int, diagnostics: bool, make_pass: MakePass
) -> Chunk:
    """Compute the statistics that ``needs`` requests; with ``diagnostics`` all that are available."""
    logits = source.logits(part.rows, needs.full_teacher or source.full_teacher_is_free)
    row_pass = make_pass(logits)
    support = _support(logits.student, logits.teacher, part, needs, top_k)
    known_ids = _append(support.ids, part.sampled_ids)
    student_known, teacher_known = row_pass.at(known_ids)
    if teacher_known is None and part.teacher_logprobs is None:
        teacher_known = source.teacher_at(part.rows, known_ids)
    possible = support.present & (student_known[:, :-1] > -torch.inf) if logits.may_exclude else support.present
    if needs.support == "student_top_k":  # with fewer than k possible tokens, the rest of the top k has no mass
        support = replace(support, present=possible)
    sums = row_pass.sums(support, 2 if diagnostics else needs.order, diagnostics)

    is_top = (support.ids == sums.top_ids.unsqueeze(-1)) & support.present
    # Relative to the top token, whose logit is then exactly 0: large logits lose no digits.
    relative = student_known - sums.top_logits.unsqueeze(-1)
    counted = relative[:, :-1].exp() * (support.present & ~is_top)
    totals = sums.mass + 1
    if support.ids.shape[-1]:
        totals = totals + counted.sum(-1)
    log_totals = totals.log()
    logprobs = relative - log_totals.unsqueeze(-1)
    student_logprobs = logprobs[:, -1]
    if teacher_known is None and part.chosen:
        scores = _chosen_scores(part, student_known, is_top, sums, log_totals, needs)
    elif teacher_known is None:
        scores = _server_scores(part, is_top if needs.support == "teacher_top_k" else None)
    else:
        scores = _scores(student_known, teacher_known, is_top, sums, log_totals)
    if "support_difference" in scores and (logits.may_exclude or part.chosen):
        # Without mass or without a score, it may be NaN.
        difference = scores["support_difference"][:, 1:]
        scores["support_difference"] = _prepend(torch.zeros_like(sums.top_logits), difference.masked_fill(~possible, 0))
    others = _other_sums(sums, totals)
    if sums.entropy is not None:
        others["entropy"] = log_totals + (sums.entropy + torch.special.entr(counted).sum(-1)) / totals  # top: 0
    rows = Rows(
        sampled_ids=part.sampled_ids,
        student_logprobs=student_logprobs,
        support_ids=_prepend(sums.top_ids, support.ids),
        in_support=_in_support(support, is_top, needs),
        support_logprobs=_prepend(-log_totals, logprobs[:, :-1]),
        importance=_importance(part, student_logprobs),
        extra_advantages=part.extra_advantages,
        other_prob=sums.mass / totals,
        **scores,
        **others,
    )
    return Chunk(rows, row_pass, totals, source.gradient_dtype)


def _support(
    student: Float[Tensor, "C V"], teacher: Float[Tensor, "C V"] | None, part: Batch, needs: Needs, top_k: int
) -> Support:
    """Return the tokens kept individually; none for support "top", because every pass finds the top token."""
    if needs.support != "top" and part.top_k_ids is not None:
        # Only -inf marks a missing entry: a NaN is an entry, and must not be lost.
        return Support(part.top_k_ids, not_none(part.top_k_logprobs) != -torch.inf)
    if needs.support == "top":
        ids = part.sampled_ids.new_empty(len(part.sampled_ids), 0)
    elif needs.support == "student_top_k":
        ids = top_k_ids(student, top_k)
    else:
        ids = top_k_ids(not_none(teacher), top_k)
    present = torch.ones_like(ids, dtype=torch.bool)
    return Support(ids, present, holds_top=needs.support == "student_top_k")


def _in_support(support: Support, is_top: Bool[Tensor, "C k"], needs: Needs) -> Bool[Tensor, "C K"]:
    """Mark the columns [top token, support] that belong to the estimator's support, each token once, (C, 1 + k)."""
    if needs.support == "top":
        return torch.ones(len(is_top), 1, dtype=torch.bool, device=is_top.device)
    return _prepend(is_top.any(-1), support.present & ~is_top)


def _prepend(column: Shaped[Tensor, " C"], columns: Shaped[Tensor, "C k"]) -> Shaped[Tensor, "C k+1"]:
    return torch.cat([column.unsqueeze(-1), columns], dim=-1) if columns.shape[-1] else column.unsqueeze(-1)


def _append(columns: Shaped[Tensor, "C k"], column: Shaped[Tensor, " C"]) -> Shaped[Tensor, "C k+1"]:
    return torch.cat([columns, column.unsqueeze(-1)], dim=-1) if columns.shape[-1] else column.unsqueeze(-1)


def _scores(
    student_known: Float[Tensor, "C J"],
    teacher_known: Float[Tensor, "C J"],
    is_top: Bool[Tensor, "C k"],
    sums: Sums,
    log_totals: Float[Tensor, " C"],
) -> dict[str, Tensor]:
    """Differences relative to the top token; with full teacher rows also the teacher's log-probabilities."""
    difference = student_known - teacher_known
    top_difference = sums.top_difference
    if top_difference is None:  # the support holds the top token
        top_difference = difference[:, :-1].masked_fill(~is_top, 0).sum(-1)
    centred = difference - top_difference.unsqueeze(-1)
    scores = {
        "support_difference": _prepend(torch.zeros_like(top_difference), centred[:, :-1]),
        "sampled_difference": centred[:, -1],
    }
    if sums.teacher_top_logits is not None:
        known = _prepend(sums.top_logits - top_difference, teacher_known)
        relative = known - sums.teacher_top_logits.unsqueeze(-1)
        logprobs = relative - not_none(sums.teacher_log_mass).unsqueeze(-1)
        scores["support_teacher_logprobs"] = logprobs[:, :-1]
        scores["teacher_logprobs"] = logprobs[:, -1]
        scores["top_reward"] = logprobs[:, 0] + log_totals
    return scores


def _server_scores(part: Batch, is_top: Bool[Tensor, "C k"] | None) -> dict[str, Tensor]:
    """A server's scores; the top token's score is in column 0 if it is among the teacher's top k."""
    scores = {"teacher_logprobs": not_none(part.teacher_logprobs)}
    if is_top is not None:
        logprobs = not_none(part.top_k_logprobs)
        top = torch.where(is_top, logprobs, -torch.inf).amax(-1, keepdim=True)
        scores["support_teacher_logprobs"] = torch.cat([top, logprobs], dim=-1)
    return scores


def _chosen_scores(
    part: Batch,
    student_known: Float[Tensor, "C J"],
    is_top: Bool[Tensor, "C k"],
    sums: Sums,
    log_totals: Float[Tensor, " C"],
    needs: Needs,
) -> dict[str, Tensor]:
    """A server's scores at the student's top k, used as logits: only their differences are read.

    If the student's most likely token differs from the one when the ids were chosen, differences are not centred, which
    shifts all of them equally.
    """
    sampled = not_none(part.teacher_logprobs)
    known = torch.cat([not_none(part.top_k_logprobs), sampled.unsqueeze(-1)], dim=-1)
    scores = _scores(student_known, known, is_top, replace(sums, top_difference=None), log_totals)
    return {**scores, "teacher_logprobs": sampled} if needs.full_teacher else scores


def _other_sums(sums: Sums, totals: Float[Tensor, " C"]) -> dict[str, Tensor]:
    """Sums over the tokens in no column as probabilities: e is divided by totals, e^2 by their squares."""
    powers = {
        "other_square_prob": (sums.square_mass, 2),
        "other_difference": (sums.difference, 1),
        "other_square_difference": (sums.square_difference, 2),
        "other_difference_square": (sums.difference_square, 1),
        "other_square_difference_square": (sums.square_difference_square, 2),
    }
    return {name: value / totals**power for name, (value, power) in powers.items() if value is not None}


def _importance(part: Batch, student_logprobs: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    if part.rollout_logprobs is not None:
        return importance_weights(student_logprobs, part.rollout_logprobs, part.importance_cap)
    return torch.ones_like(student_logprobs) if part.importance is None else part.importance

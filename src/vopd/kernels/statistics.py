"""The statistics of one chunk of rows, whatever gives the teacher's scores: full rows, chosen ids, or a server."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..functional import importance_weights
from ..functional.moments import computed
from . import torch_rows
from .rows import Batch, GradientForm, Needs, Rows, counted_columns
from .sources import LogitSource


@dataclass(frozen=True)
class Chunk:
    """Statistics of some rows and the buffers from which their gradient can still be written.

    Attributes:
        rows: what the estimator sees.
        exponentials: exp(z - max) of the student, (C, V), 0 at the support.
        difference: d', (C, V), or None without full teacher rows.
        totals: row sums of the exponentials, support included, (C,).
        support: the exponentials at the support, (C, K).
    """

    rows: Rows
    exponentials: Tensor
    difference: Tensor | None
    totals: Tensor
    support: Tensor

    def gradient(self, form: GradientForm, weight: Tensor) -> Tensor:
        """The gradient form times ``weight``, (C, V), written over the student's buffer; call once."""
        self.exponentials.scatter_(-1, self.rows.support_ids, self.support)
        return torch_rows.write_gradient(self.exponentials, self.difference, self.totals, form, weight)


def compute_chunk(source: LogitSource, part: Batch, needs: Needs, top_k: int, diagnostics: bool) -> Chunk:
    """Computes the statistics that ``needs`` names, and with ``diagnostics`` all that can be had."""
    student = source.student(part.rows)
    teacher = source.teacher(part.rows) if needs.full_teacher or source.full_teacher_is_free else None
    top_logits, top_ids = student.max(dim=-1)
    support_ids, in_support = _support(student, teacher, part, needs, top_k, top_ids)
    known_ids = torch.cat([support_ids, part.sampled_ids.unsqueeze(-1)], dim=-1)
    student_known = student.gather(-1, known_ids)
    if teacher is not None:
        scores = _full_scores(student, teacher, known_ids, source.may_exclude)
    elif part.teacher_logprobs is not None:
        scores = _server_scores(part, support_ids if needs.support == "teacher_top_k" else None)
    else:
        scores = _scores_at(student_known, source.teacher_at(part.rows, known_ids))
    support = torch_rows.exponentiate(student, top_logits, support_ids)
    counted = support * counted_columns(in_support)
    others = torch_rows.masses(student)
    totals = others + counted.sum(-1)
    student_logprobs = student_known - (top_logits + totals.log()).unsqueeze(-1)
    if teacher is not None:
        scores["top_reward"] = scores["support_teacher_logprobs"][:, 0] - student_logprobs[:, 0]
    sums = _other_sums(student, teacher, totals, 2 if diagnostics else needs.order, diagnostics)
    if diagnostics:
        entropies = torch_rows.entropy_sums(student) + torch.special.entr(counted).sum(-1)
        sums["entropy"] = totals.log() + entropies / totals
    rows = Rows(
        sampled_ids=part.sampled_ids,
        student_logprobs=student_logprobs[:, -1],
        support_ids=support_ids,
        in_support=in_support,
        support_logprobs=student_logprobs[:, :-1],
        importance=_importance(part, student_logprobs[:, -1]),
        other_prob=others / totals,
        **scores,
        **sums,
    )
    return Chunk(rows, student, teacher, totals, support)


def _support(
    student: Tensor, teacher: Tensor | None, part: Batch, needs: Needs, top_k: int, top_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Ids kept one by one, the student's top token first, and which columns are the estimator's support."""
    top = top_ids.unsqueeze(-1)
    if needs.support == "top":
        return top, torch.ones_like(top, dtype=torch.bool)
    if needs.support == "student_top_k":
        ids = student.topk(top_k, dim=-1).indices
        present = torch.ones_like(ids, dtype=torch.bool)
    elif part.top_k_ids is not None:
        ids = part.top_k_ids
        present = computed(part.top_k_logprobs) > -torch.inf
    else:
        ids = computed(teacher).topk(top_k, dim=-1).indices
        present = torch.ones_like(ids, dtype=torch.bool)
    is_top = ids == top
    top_present = (is_top & present).any(-1, keepdim=True)
    return torch.cat([top, ids], dim=-1), torch.cat([top_present, present & ~is_top], dim=-1)


def _full_scores(student: Tensor, teacher: Tensor, known_ids: Tensor, may_exclude: bool) -> dict[str, Tensor]:
    """Scores at the known ids from full teacher rows, which turn into d' on the way."""
    log_normalizers = torch_rows.log_normalizers(teacher).unsqueeze(-1)
    logprobs = teacher.gather(-1, known_ids) - log_normalizers
    torch_rows.subtract_into_teacher(student, teacher, known_ids[:, 0], may_exclude)
    difference = teacher.gather(-1, known_ids)
    return {
        "support_teacher_logprobs": logprobs[:, :-1],
        "teacher_logprobs": logprobs[:, -1],
        "support_difference": difference[:, :-1],
        "sampled_difference": difference[:, -1],
    }


def _scores_at(student_known: Tensor, teacher_known: Tensor) -> dict[str, Tensor]:
    """Differences at the known ids alone: the teacher's normaliser is never computed."""
    difference = student_known - teacher_known
    difference = difference - difference[:, :1]
    return {"support_difference": difference[:, :-1], "sampled_difference": difference[:, -1]}


def _server_scores(part: Batch, support_ids: Tensor | None) -> dict[str, Tensor]:
    """A server's scores, with the top token's moved to column 0 where it is among the teacher's top k."""
    scores = {"teacher_logprobs": computed(part.teacher_logprobs)}
    if support_ids is not None:
        logprobs = computed(part.top_k_logprobs)
        is_top = support_ids[:, 1:] == support_ids[:, :1]
        top = torch.where(is_top, logprobs, -torch.inf).amax(-1, keepdim=True)
        scores["support_teacher_logprobs"] = torch.cat([top, logprobs], dim=-1)
    return scores


def _other_sums(
    exponentials: Tensor, difference: Tensor | None, totals: Tensor, order: int, diagnostics: bool
) -> dict[str, Tensor]:
    """Sums over the tokens in no column, as probabilities."""
    if difference is None:
        return {"other_square_prob": torch_rows.square_masses(exponentials) / totals.square()} if order == 2 else {}
    if order == 0:
        return {}
    names = {
        "other_difference": 1,
        "other_square_prob": 2,
        "other_square_difference": 2,
        "other_difference_square": 1,
        "other_square_difference_square": 2,
    }
    sums = torch_rows.moment_sums(exponentials, difference, order, diagnostics)
    return {name: total / totals**power for (name, power), total in zip(names.items(), sums)}


def _importance(part: Batch, student_logprobs: Tensor) -> Tensor:
    if part.rollout_logprobs is not None:
        return importance_weights(student_logprobs, part.rollout_logprobs, part.importance_cap)
    return torch.ones_like(student_logprobs) if part.importance is None else part.importance

"""The loss of a micro-batch from whatever its teachers gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

from vopd.estimators import DistillationOutput, linear_distillation_loss
from vopd.teachers import Scored, States, TopKScores


def distil_each(
    student: States,
    scored: Sequence[Scored],
    completion_ids: Tensor,
    loss_mask: Tensor,
    *,
    normalizer: Tensor | float | None,
    **settings: Any,
) -> list[DistillationOutput]:
    """``linear_distillation_loss`` of each teacher, on the tokens that its mask covers.

    Args:
        student: with gradient.
        scored: what the teachers say.
        completion_ids: (B, T).
        loss_mask: (B, T).
        normalizer: divisor of the sum over all teachers; None for the number of masked-in tokens.
        settings: of ``linear_distillation_loss``.

    Returns:
        Its part of the loss and what was computed at its tokens, for each entry of `scored`.
    """
    if normalizer is None and len(scored) > 1:
        normalizer = loss_mask.sum()
    return [
        linear_distillation_loss(
            student.hidden,
            student.head.weight,
            **_teacher(entry.by),
            completion_ids=completion_ids,
            completion_mask=own_mask(entry, loss_mask),
            normalizer=normalizer,
            **student.head.options("student"),
            **settings,
        )
        for entry in scored
    ]


def own_mask(entry: Scored, loss_mask: Tensor) -> Tensor:
    """The tokens of one teacher that count, (B, T)."""
    return loss_mask if entry.mask is None else loss_mask * entry.mask.to(loss_mask.dtype)


def together(parts: Sequence[DistillationOutput]) -> DistillationOutput:
    """The loss over all teachers, and per token what each one's part computed: None where one could not."""
    return parts[0] if len(parts) == 1 else _sum(list(parts))


def _teacher(by: States | TopKScores) -> dict[str, Any]:
    """The loss's arguments that say what a teacher gave."""
    if isinstance(by, TopKScores):
        return {"teacher_hidden": None, "teacher_head": None, "teacher_scores": by}
    return {"teacher_hidden": by.hidden, "teacher_head": by.head.weight, **by.head.options("teacher")}


def _sum(outputs: list[DistillationOutput]) -> DistillationOutput:
    """Field by field: every part is 0 at the tokens of the others."""
    return DistillationOutput(
        **{entry.name: _sum_of([getattr(output, entry.name) for output in outputs]) for entry in fields(outputs[0])}
    )


def _sum_of(parts: list[Any]) -> Any:
    if any(part is None for part in parts):
        return None
    if isinstance(parts[0], tuple):
        return type(parts[0])(*(_sum_of(list(column)) for column in zip(*parts)))
    return sum(parts[1:], parts[0])

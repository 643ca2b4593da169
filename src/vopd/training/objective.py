"""The loss of a micro-batch from its teachers' scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vopd.estimators import DistillationOutput, TopKScores, linear_distillation_loss
from vopd.models import States
from vopd.teachers import Scored

from .batch import Batch
from .config import VOPDConfig


@dataclass(frozen=True)
class Objective:
    """How training computes its loss: everything that is the same for every micro-batch.

    Attributes:
        config: estimator, its k, temperature and importance weights.
        vocab_size: size of the vocabulary that student and teacher share, without padding rows.
        backend: backend of the loss, "torch" or "triton".
    """

    config: VOPDConfig
    vocab_size: int
    backend: str

    def parts(
        self,
        batch: Batch,
        student: States,
        scored: Sequence[Scored],
        *,
        normalizer: Tensor | float | None,
        diagnostics: bool = False,
    ) -> list[DistillationOutput]:
        """``linear_distillation_loss`` of each teacher, on the tokens that its mask covers.

        Args:
            batch: the micro-batch, on the student's device.
            student: the student's states, with gradient.
            scored: the teachers' scores.
            normalizer: divisor of the sum over all teachers; None for the number of tokens in the mask.
            diagnostics: also compute entropy, exact KL and variances.

        Returns:
            For each entry of `scored`, its part of the loss and the values at its tokens.
        """
        if normalizer is None and len(scored) > 1:
            normalizer = batch.loss_mask.sum()
        config, parts = self.config, []
        for entry in scored:
            teacher = entry.by if isinstance(entry.by, States) else None
            part = linear_distillation_loss(
                student.hidden,
                student.head.weight,
                None if teacher is None else teacher.hidden,
                None if teacher is None else teacher.head.weight,
                batch.completion_ids,
                own_mask(entry, batch.loss_mask),
                estimator=config.chosen_estimator,
                top_k=config.loss_top_k,
                temperature=config.temperature,
                normalizer=normalizer,
                teacher_scores=entry.by if isinstance(entry.by, TopKScores) else None,
                rollout_logprobs=None if config.importance_sampling is False else batch.rollout_logprobs,
                importance_cap=config.importance_cap,
                extra_advantages=batch.token_advantages,
                vocab_size=self.vocab_size,
                diagnostics=diagnostics,
                backend=self.backend,
                **student.head.options("student"),
                **({} if teacher is None else teacher.head.options("teacher")),
            )
            parts.append(part)
        return parts


def own_mask(entry: Scored, loss_mask: Tensor) -> Tensor:
    """Mask of the tokens in one teacher's loss, (B, T)."""
    return loss_mask if entry.mask is None else loss_mask * entry.mask.to(loss_mask.dtype)


def combined(parts: Sequence[DistillationOutput]) -> DistillationOutput:
    """The loss summed over all teachers, and their values per token: each part is 0 at the others' tokens."""
    return parts[0] if len(parts) == 1 else DistillationOutput.join(parts, lambda values: sum(values[1:], values[0]))

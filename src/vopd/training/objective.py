"""The loss of a micro-batch from whatever its teachers gave."""

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
    """How a run computes its loss: what is the same for every micro-batch.

    Attributes:
        config: estimator, its k, temperature and importance weights.
        vocab_size: the common real vocabulary.
        backend: what the loss runs in.
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
            student: with gradient.
            scored: what the teachers say.
            normalizer: divisor of the sum over all teachers; None for the number of masked-in tokens.
            diagnostics: also compute entropy, exact KL and variances.

        Returns:
            Its part of the loss and what was computed at its tokens, for each entry of `scored`.
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
    """The tokens of one teacher that count, (B, T)."""
    return loss_mask if entry.mask is None else loss_mask * entry.mask.to(loss_mask.dtype)


def combined(parts: Sequence[DistillationOutput]) -> DistillationOutput:
    """The loss over all teachers, and per token what each one's part computed: a part is 0 at others' tokens."""
    return parts[0] if len(parts) == 1 else DistillationOutput.join(parts, lambda values: sum(values[1:], values[0]))

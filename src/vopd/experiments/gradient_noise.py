"""Gradient noise in parameter space: contexts held fixed, tokens redrawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vopd.estimators import ESTIMATORS, linear_distillation_loss
from vopd.kernels import Head
from vopd.models import read_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLING_ROWS = 512


@dataclass(frozen=True)
class GradientNoise:
    """Noise that sampling the tokens puts into the gradient of one batch, for one estimator.

    Attributes:
        variance: trace of Cov[g | contexts], g the gradient of the mean token loss in all trained parameters.
        squared_norm: |E g|^2 of the exact gradient (that of ``full_rkl``) on the same contexts.
        squared_bias: |mean over the redraws of g - exact g|^2 less what noise alone would give; about 0 if unbiased.
    """

    variance: float
    squared_norm: float
    squared_bias: float

    @property
    def signal_to_noise(self) -> float:
        """|E g|^2 / trace of Cov[g | contexts]."""
        return self.squared_norm / self.variance if self.variance > 0 else float("inf")


@dataclass(frozen=True)
class Contexts:
    """Rollouts whose prefixes are held fixed: both models' hidden states at their completion tokens.

    Attributes:
        student_hidden: (N, D_s), with the graph to the student's parameters.
        teacher_hidden: (N, D_t).
    """

    student_hidden: Tensor
    teacher_hidden: Tensor


def gradient_noise(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    completion_mask: Tensor,
    *,
    estimators: Sequence[str],
    top_k: Mapping[str, int] | None = None,
    resamples: int = 32,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    seed: int = 0,
) -> dict[str, GradientNoise]:
    """Measures Cov[g | contexts]: every prefix fixed, each token redrawn from the student ``resamples`` times.

    All estimators see the same draws. The variance is the unbiased sample variance, summed over parameters as the
    redraws go by, in the memory of two gradients. ``full_rkl`` does not look at the token, so its noise is 0.

    Args:
        student, teacher: transformers causal language models whose heads ``read_head`` can read.
        input_ids: prompts and completions, (B, L).
        attention_mask: (B, L).
        completion_mask: nonzero at completion tokens that count, (B, L).
        estimators: names in ``vopd.ESTIMATORS``.
        top_k: k of the estimators that have one, by name.
        resamples: R, at least 2.
        temperature: of sampling and loss.
        vocab_size: the common real vocabulary.
        seed: of the draws.

    Returns:
        A GradientNoise for each estimator.

    Source: the law of total variance; E over contexts of this is the token part of the gradient's variance.
    """
    if resamples < 2:
        raise ValueError(f"a variance needs at least 2 resamples, not {resamples}")
    parameters = [p for p in student.parameters() if p.requires_grad]
    contexts = _contexts(student, teacher, input_ids, attention_mask, completion_mask)
    vocab = shared_rows(student, teacher) if vocab_size is None else vocab_size
    hidden, head = contexts.student_hidden.detach(), read_head(student, "student")
    draws = _redraw(hidden, head, vocab, resamples, temperature, seed)

    def gradient(estimator: str, ids: Tensor) -> Tensor:
        return _gradient(
            student, teacher, parameters, contexts, ids,
            estimator=estimator, top_k=(top_k or {}).get(estimator) if ESTIMATORS[estimator].needs_top_k else None,
            temperature=temperature, vocab_size=vocab,
        )  # fmt: skip

    exact = gradient("full_rkl", draws[0])
    return {name: _noise((gradient(name, ids) for ids in draws), exact) for name in estimators}


def _contexts(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    completion_mask: Tensor,
) -> Contexts:
    """Hidden states that predict the completion tokens: those one position before them."""
    predicts = completion_mask[:, 1:].bool()
    positions = (attention_mask.cumsum(-1) - 1).clamp_min(0)

    def hidden(model: PreTrainedModel) -> Tensor:
        backbone = model.base_model
        states = backbone(input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False)
        return states.last_hidden_state[:, :-1][predicts]

    with torch.no_grad():
        teacher_hidden = hidden(teacher)
    return Contexts(hidden(student), teacher_hidden)


def shared_rows(student: PreTrainedModel, teacher: PreTrainedModel) -> int:
    """Rows of the shorter one of two output heads."""
    return min(len(read_head(student, "student").weight), len(read_head(teacher, "teacher").weight))


@torch.no_grad()
def _redraw(hidden: Tensor, head: Head, vocab: int, resamples: int, temperature: float, seed: int) -> Tensor:
    """Tokens among the first `vocab` drawn independently at every position, (R, N)."""
    generator = torch.Generator(hidden.device).manual_seed(seed)
    head = head.map(lambda part: part[:vocab].float())
    draws = [
        torch.multinomial((head.logits(rows) / temperature).softmax(-1), resamples, True, generator=generator)
        for rows in hidden.split(SAMPLING_ROWS)
    ]
    return torch.cat(draws).T


def _gradient(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    parameters: list[nn.Parameter],
    contexts: Contexts,
    ids: Tensor,
    **options: Any,
) -> Tensor:
    """Gradient of the mean token loss in all trained parameters, one flat vector."""
    hidden = contexts.student_hidden.detach().requires_grad_()
    head, teacher_head = read_head(student, "student"), read_head(teacher, "teacher").detach()
    out = linear_distillation_loss(
        hidden, head.weight, contexts.teacher_hidden, teacher_head.weight, ids,
        **head.options("student"), **teacher_head.options("teacher"), **options,
    )  # fmt: skip
    trained = [part for part in (head.weight, head.bias) if part is not None and part.requires_grad]
    hidden_gradient, *head_gradients = torch.autograd.grad(out.loss, [hidden, *trained])
    gradients = torch.autograd.grad(
        contexts.student_hidden, parameters, hidden_gradient, retain_graph=True, allow_unused=True
    )
    through_head = dict(zip(map(id, trained), head_gradients))
    flat = []
    for parameter, gradient in zip(parameters, gradients):
        total = torch.zeros_like(parameter) if gradient is None else gradient
        flat.append((total + through_head.get(id(parameter), 0)).flatten().float())
    return torch.cat(flat)


def _noise(gradients: Iterable[Tensor], exact: Tensor) -> GradientNoise:
    """Streams over the redraws: sums of the deviations from the exact gradient and of their squares."""
    count, deviations, squares = 0, torch.zeros_like(exact), 0.0
    for gradient in gradients:
        deviation = gradient - exact
        count += 1
        deviations += deviation
        squares += float(deviation.square().sum())
    mean_square = float((deviations / count).square().sum())
    variance = max(0.0, (squares - count * mean_square) / (count - 1))
    return GradientNoise(variance, float(exact.square().sum()), mean_square - variance / count)

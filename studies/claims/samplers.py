"""Samplers slightly off the trainer: the exact expected gradient of every baseline under them, by enumeration.

At each token the expected gradient in the logits, sum_y s_y g(y), is summed over the whole vocabulary with the
library's own estimators, s being the sampler's distribution; carried back through the model it gives the bias in the
parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vopd.estimators import Estimator, distillation_loss
from vopd.experiments.rollouts import Rollout

_CHUNK_ELEMENTS = 4_000_000  # of tokens x V x V logits
ESTIMATORS: Mapping[str, int | None] = {
    "opd": None, "vopd": None, "vopd_top_k": 5, "vopd_sparse": 5, "vopd_optimal": None,
    "rao_blackwell_teacher_top_k": 20,
}  # fmt: skip


def sampler_table(
    student: Any, teacher: Any, rollouts: Sequence[Rollout], vocabulary: int, tokens: int
) -> dict[str, dict[str, dict[str, float]]]:
    """For each sampler and estimator: squared bias in parameters and in logits, relative to the exact gradient's
    square, and the variance in the logits relative to opd's on-policy.

    The first `tokens` completion tokens of the rollouts are taken.
    """
    logits, other, rough = _logits(student, teacher, rollouts, vocabulary, tokens)
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]

    def carried(gradient: Tensor) -> Tensor:
        """The gradient in the parameters of the mean over tokens."""
        parts = torch.autograd.grad(logits, parameters, gradient / len(logits), retain_graph=True, allow_unused=True)
        return torch.cat([part.flatten() for part in parts if part is not None])

    own = logits.detach()
    exact = exact_gradient(own, other)
    exact_parameters = carried(exact)
    tried = samplers(own, rough)
    found: dict[str, dict[str, dict[str, float]]] = {sampler: {} for sampler in tried}
    reference = 0.0
    for name, top_k in ESTIMATORS.items():
        found_moments = moments(own, other, list(tried.values()), name, top_k)
        for sampler, (mean, square) in zip(tried, found_moments, strict=True):
            variance = float((square - mean.square().sum(-1)).clamp_min(0).mean())
            reference = reference or variance  # opd's, on-policy: the first of both
            off = carried(mean) - exact_parameters
            found[sampler][name] = {
                "relative_bias": float(off.square().sum() / exact_parameters.square().sum()),
                "relative_bias_logits": float((mean - exact).square().sum() / exact.square().sum()),
                "variance_over_opd": variance / reference,
            }
    return found


def samplers(logits: Tensor, rough: Tensor) -> dict[str, Tensor]:
    """Distributions (N, V): the student's own first, then slightly wrong ones. `rough` are its logits in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(logits.shape, generator=generator)
    return {
        "exact": logits.softmax(-1),
        "bfloat16": rough.softmax(-1),
        "logit noise 0.1": (logits + 0.1 * noise).softmax(-1),
        "logit noise 0.3": (logits + 0.3 * noise).softmax(-1),
        "temperature 0.9": (logits / 0.9).softmax(-1),
        "temperature 1.1": (logits / 1.1).softmax(-1),
        "top-p 0.99": _top_p(logits.softmax(-1), 0.99),
        "top-p 0.95": _top_p(logits.softmax(-1), 0.95),
    }


def _top_p(probabilities: Tensor, mass: float) -> Tensor:
    """The smallest set of tokens of at least this mass, renormalised."""
    ordered, ids = probabilities.sort(-1, descending=True)
    kept = ordered.cumsum(-1) - ordered < mass
    cut = torch.zeros_like(probabilities).scatter_(-1, ids, ordered * kept)
    return cut / cut.sum(-1, keepdim=True)


def exact_gradient(logits: Tensor, other: Tensor) -> Tensor:
    """Gradient of KL(p || q) in the student's logits, (N, V), summed in float64."""
    own = logits.double().log_softmax(-1)
    rewards = other.double().log_softmax(-1) - own
    return (-own.exp() * (rewards - (own.exp() * rewards).sum(-1, keepdim=True))).float()


def outcomes(logits: Tensor, other: Tensor, estimator: str | Estimator, top_k: int | None) -> Iterator[Tensor]:
    """The gradient g(y) in the logits for every token y, a few tokens at a time: (n, y, V), N in all."""
    vocabulary = logits.shape[-1]
    for own, target in zip(few(logits), few(other), strict=True):
        rows = own.repeat_interleave(vocabulary, 0).requires_grad_()
        ids = torch.arange(vocabulary).repeat(len(own))
        output = distillation_loss(
            rows, target.repeat_interleave(vocabulary, 0), ids, estimator=estimator, top_k=top_k, normalizer=1.0
        )
        yield torch.autograd.grad(output.loss, rows)[0].view(len(own), vocabulary, vocabulary)


def few(rows: Tensor) -> Sequence[Tensor]:
    """Rows (N, V) split as in `outcomes`."""
    return rows.split(max(1, _CHUNK_ELEMENTS // rows.shape[-1] ** 2))


def moments(
    logits: Tensor, other: Tensor, weights: Sequence[Tensor], estimator: str | Estimator, top_k: int | None
) -> list[tuple[Tensor, Tensor]]:
    """For each sampler's s: sum_y s_y g(y), (N, V), and sum_y s_y |g(y)|^2, (N,), over all tokens y."""
    parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in weights]
    for gradient, *here in zip(outcomes(logits, other, estimator, top_k), *map(few, weights), strict=True):
        squares = gradient.square().sum(-1)
        for part, given in zip(parts, here, strict=True):
            part.append((torch.einsum("nyv,ny->nv", gradient, given), torch.einsum("ny,ny->n", squares, given)))
    return [(torch.cat([mean for mean, _ in part]), torch.cat([square for _, square in part])) for part in parts]


def _logits(
    student: Any, teacher: Any, rollouts: Sequence[Rollout], vocabulary: int, tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, V) at the first completion tokens: the student's with its graph, the teacher's, and the student's in
    bfloat16."""
    rough = copy.deepcopy(student).to(torch.bfloat16)

    def one(model: Any, rollout: Rollout) -> Tensor:
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
        found: Tensor = model(input_ids=ids).logits[0, len(rollout.prompt_ids) - 1 : -1, :vocabulary]
        return found

    def first(call: Callable[[Rollout], Tensor]) -> Tensor:
        parts, count = [], 0
        for rollout in rollouts:
            parts.append(call(rollout))
            count += len(parts[-1])
            if count >= tokens:
                break
        return torch.cat(parts)[:tokens]

    with torch.no_grad():
        other = first(lambda rollout: one(teacher, rollout))
        low = first(lambda rollout: one(rough, rollout)).float()
    return first(lambda rollout: one(student, rollout)), other, low

"""Token losses for on-policy distillation on dense log-probabilities, by autograd.

These are the definitions that the fused path is tested against, and small enough to copy into a training loop.
``student_logprobs`` is the student's full log-softmax (..., V), with gradient; everything a loss multiplies it by is
detached inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def policy_gradient_loss(
    sampled_logprobs: Float[Tensor, "*tokens"],
    advantages: Float[Tensor, "*tokens"],
    importance_weights: Float[Tensor, "*tokens"] | None = None,
) -> Float[Tensor, "*tokens"]:
    """Token loss -w A log p(y), A and w detached.

    Args:
        sampled_logprobs: log p(y) of the student at the sampled token, (...), gets gradient.
        advantages: r_y - b, (...), detached here; forgetting to is the classic bias of this loss.
        importance_weights: w, (...), detached here; None for on-policy samples.

    Returns:
        (...), the token losses.

    Source: Williams (1992), REINFORCE; arXiv 2605.07865 reads OPD this way.
    """
    weighted = advantages if importance_weights is None else advantages * importance_weights
    return -weighted.detach() * sampled_logprobs


def reverse_kl(
    student_logprobs: Float[Tensor, "*tokens V"], teacher_logprobs: Float[Tensor, "*tokens V"]
) -> Float[Tensor, "*tokens"]:
    """Exact KL(p || q) = sum p (log p - log q). A token of student probability 0 contributes 0.

    Args:
        student_logprobs: (..., V), gets gradient.
        teacher_logprobs: (..., V).

    Returns:
        (...), nats.

    Source: arXiv 2306.13649 (on-policy distillation); "full-vocabulary" in arXiv 2605.07865.
    """
    probs = student_logprobs.exp()
    return (probs * (student_logprobs - teacher_logprobs).masked_fill(probs == 0, 0)).sum(-1)


def truncated_reverse_kl(
    student_top_k_logits: Float[Tensor, "*tokens k"], teacher_top_k_logits: Float[Tensor, "*tokens k"]
) -> Float[Tensor, "*tokens"]:
    """KL(p~ || q~), both renormalised on the student's top k: a biased objective, kept as a control.

    Args:
        student_top_k_logits: (..., k), logits or log-probabilities, gets gradient.
        teacher_top_k_logits: (..., k), at the same ids.

    Returns:
        (...), nats.
    """
    return reverse_kl(torch.log_softmax(student_top_k_logits, -1), torch.log_softmax(teacher_top_k_logits, -1))


def rao_blackwell_loss(
    student_logprobs: Float[Tensor, "*tokens V"],
    rewards: Float[Tensor, "*tokens V"],
    baseline: Float[Tensor, "*tokens"],
    completion_ids: Int[Tensor, "*tokens"],
    support_ids: Int[Tensor, "*tokens k"],
    importance_weights: Float[Tensor, "*tokens"] | None = None,
) -> Float[Tensor, "*tokens"]:
    """-sum_{v in S} sg[p_v (r_v - b)] log p_v - 1[y not in S] sg[w (r_y - b)] log p_y.

    The tokens of S are summed exactly, the others sampled: unbiased for any S and b that do not depend on y.

    Args:
        student_logprobs: (..., V), gets gradient.
        rewards: r for the whole vocabulary, (..., V).
        baseline: b, (...).
        completion_ids: y, (...).
        support_ids: S, (..., k), distinct.
        importance_weights: w, (...), on the sampled term only.

    Returns:
        (...), the token losses.

    Source: Rao-Blackwell's theorem applied to the score-function estimator; Liu et al., arXiv 1810.04777.
    """
    centred = (rewards - baseline.unsqueeze(-1)).detach()
    inside = torch.zeros_like(student_logprobs).scatter(-1, support_ids, 1)
    probs = student_logprobs.detach().exp()
    weights = inside * probs * centred.masked_fill(probs == 0, 0)
    summed = (weights * student_logprobs.masked_fill(probs == 0, 0)).sum(-1)
    sampled = completion_ids.unsqueeze(-1)
    outside = 1 - inside.gather(-1, sampled).squeeze(-1)
    advantages = outside * centred.gather(-1, sampled).squeeze(-1)
    return (
        policy_gradient_loss(student_logprobs.gather(-1, sampled).squeeze(-1), advantages, importance_weights) - summed
    )

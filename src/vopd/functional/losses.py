"""Token losses for on-policy distillation from full log-probabilities, differentiated by autograd.

The fused losses are tested against these definitions, which are small enough to copy into your own training loop.
``student_logprobs`` is the student's full log-softmax, (..., V), and gets the gradient; the factors that a loss
multiplies it by are detached.
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
    """Policy-gradient loss of the sampled tokens, -w A log p(y), with A and w detached.

    Args:
        sampled_logprobs: the student's log p(y) of the sampled token, (...); gets gradient.
        advantages: A = r_y - b, (...), detached here: a gradient through A would bias the loss.
        importance_weights: w, (...), detached here; None for on-policy samples.

    Returns:
        The token losses, shape (...).

    Source: Williams (1992), REINFORCE; arXiv 2605.07865 for OPD as a policy gradient.
    """
    weighted = advantages if importance_weights is None else advantages * importance_weights
    return -weighted.detach() * sampled_logprobs


def reverse_kl(
    student_logprobs: Float[Tensor, "*tokens V"], teacher_logprobs: Float[Tensor, "*tokens V"]
) -> Float[Tensor, "*tokens"]:
    """Exact reverse KL(p || q) = sum p (log p - log q). A token with student probability 0 contributes 0.

    Args:
        student_logprobs: (..., V), gets gradient.
        teacher_logprobs: (..., V).

    Returns:
        Shape (...), nats.

    Source: arXiv 2306.13649 (on-policy distillation); "full-vocabulary" in arXiv 2605.07865.
    """
    probs = student_logprobs.exp()
    return (probs * (student_logprobs - teacher_logprobs).masked_fill(probs == 0, 0)).sum(-1)


def truncated_reverse_kl(
    student_top_k_logits: Float[Tensor, "*tokens k"], teacher_top_k_logits: Float[Tensor, "*tokens k"]
) -> Float[Tensor, "*tokens"]:
    """Reverse KL on the student's top k, ``KL(p~ || q~)`` with both models renormalized there: a biased control.

    Args:
        student_top_k_logits: (..., k), logits or log-probabilities, gets gradient.
        teacher_top_k_logits: (..., k), at the same ids, likewise.

    Returns:
        Shape (...), nats.
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
    """Rao-Blackwellized policy-gradient loss: the tokens of a support S are summed exactly, the others are sampled.

    -sum_{v in S} sg[p_v (r_v - b)] log p_v - 1[y not in S] sg[w (r_y - b)] log p_y, where sg stops the gradient.
    Unbiased for any S and b that do not depend on y.

    Args:
        student_logprobs: (..., V), gets gradient.
        rewards: r of the whole vocabulary, (..., V).
        baseline: b, (...).
        completion_ids: y, (...).
        support_ids: S, (..., k), distinct ids.
        importance_weights: w, (...), applied to the sampled term only.

    Returns:
        The token losses, shape (...).

    Source: Rao-Blackwell theorem applied to the score-function estimator; Liu et al., arXiv 1810.04777.
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

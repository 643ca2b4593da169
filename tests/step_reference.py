"""The loss of a training step written out for autograd, from the logits that the models compute themselves."""

from __future__ import annotations

from typing import Any

import torch

REAL_TOKENS = 300


def logits_alone(model: Any, prompt: list[int], completion: list[int], temperature: float) -> torch.Tensor:
    """Logits of one sequence without any padding, each at the position that predicts the completion token."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0]
    return logits[len(prompt) - 1 : -1, :REAL_TOKENS] / temperature


def written_out(
    student: Any, teacher: Any, pairs: list[tuple[list[int], list[int]]], estimator: str, temperature: float
) -> torch.Tensor:
    """The mean token loss over (prompt ids, completion ids), from the models' own logits."""
    total, tokens = torch.zeros(()), 0
    for prompt, completion in pairs:
        log_p = logits_alone(student, prompt, completion, temperature).log_softmax(-1)
        with torch.no_grad():
            log_q = logits_alone(teacher, prompt, completion, temperature).log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        if estimator == "full_rkl":
            total = total + kl.sum()
        else:
            sampled = torch.tensor(completion).unsqueeze(-1)
            reward = (log_q - log_p).gather(-1, sampled).squeeze(-1)
            advantage = (reward + kl).detach()
            total = total - (advantage * log_p.gather(-1, sampled).squeeze(-1)).sum()
        tokens += len(completion)
    return total / tokens

"""What a model of the embedded pair can do on held-out problems: greedy accuracy and exact reverse KL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vopd.data.reasoning import Problem, is_right
from vopd.estimators import distillation_loss
from vopd.models import sample
from vopd.reporting.comparison import Interval
from vopd.statistics import bootstrap_interval

from .pair import MAX_COMPLETION_TOKENS, prompt_text

_BATCH = 128


@dataclass(frozen=True)
class SampledContexts:
    """Prompts with sampled completions, left-padded: ids and masks are (problems, tokens).

    `completion_mask` is 1 at the completions' tokens, their end token included.
    """

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor


def greedy_texts(
    model: Any, tokenizer: Any, problems: Sequence[Problem | str], max_new_tokens: int = MAX_COMPLETION_TOKENS
) -> list[str]:
    """Return the greedy completion of every problem of the pair, or of every prompt."""
    prompts = _prompts(problems)
    found = sample(model, tokenizer, prompts, temperature=0.0, max_new_tokens=max_new_tokens, batch_size=_BATCH)
    return [completion.text for completion in found]


def greedy_outcomes(model: Any, tokenizer: Any, problems: list[Problem]) -> list[bool]:
    """Return for every problem whether the library's verifier accepts the greedy completion."""
    texts = greedy_texts(model, tokenizer, problems)
    return [is_right(problem, text) for problem, text in zip(problems, texts, strict=True)]


def sample_contexts(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem | str],
    seed: int = 0,
    max_new_tokens: int = MAX_COMPLETION_TOKENS,
) -> SampledContexts:
    """Sample one completion a problem from the model's own distribution, and lay the sequences out for scoring.

    The tensors are where the model is.
    """
    prompts = _prompts(problems)
    found = sample(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=_BATCH, seed=seed)
    prompt_ids = tokenizer(prompts)["input_ids"]
    pairs = [(ids, list(completion.ids)) for ids, completion in zip(prompt_ids, found, strict=True)]
    width = max(len(prompt) + len(completion) for prompt, completion in pairs)
    input_ids = torch.full((len(pairs), width), tokenizer.pad_token_id)
    attention_mask, completion_mask = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
    for row_index, (prompt, completion) in enumerate(pairs):
        start = width - len(prompt) - len(completion)
        input_ids[row_index, start:] = torch.tensor(prompt + completion)
        attention_mask[row_index, start:] = 1
        completion_mask[row_index, width - len(completion) :] = 1
    return SampledContexts(*(part.to(model.device) for part in (input_ids, attention_mask, completion_mask)))


@torch.no_grad()
def held_out_reverse_kl(
    student: Any,
    teacher: Any,
    tokenizer: Any,
    problems: Sequence[Problem | str],
    seed: int = 0,
    *,
    max_new_tokens: int = MAX_COMPLETION_TOKENS,
    vocabulary: int | None = None,
) -> Interval:
    """Exact KL(student || teacher) a token, on one sampled student completion a problem.

    Long completions weigh more: the mean is over tokens, as in the loss. The interval is that of this ratio of
    means, by its linear form: problems are drawn anew, tokens of one completion stay together. `vocabulary` is the
    common one of both models, that of the tokenizer unless given.
    """
    sums, counts = [], []
    for start in range(0, len(problems), _BATCH):
        part = problems[start : start + _BATCH]
        contexts = sample_contexts(student, tokenizer, part, seed + start, max_new_tokens)
        divergence, mask = _token_divergence(student, teacher, contexts, vocabulary or len(tokenizer))
        sums.append((divergence * mask).sum(1).cpu())
        counts.append(mask.sum(1).cpu())
    total, count = torch.cat(sums).double(), torch.cat(counts).double()
    value = total.sum() / count.sum()
    low, high = bootstrap_interval(value + (total - value * count) / count.mean())
    return Interval(value.item(), low, high)


def _prompts(problems: Sequence[Problem | str]) -> list[str]:
    return [problem if isinstance(problem, str) else prompt_text(problem) for problem in problems]


def _token_divergence(student: Any, teacher: Any, contexts: SampledContexts, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Exact reverse KL where a completion token is predicted, 0 elsewhere, and the mask of those places."""
    positions = (contexts.attention_mask.cumsum(1) - 1).clamp(min=0)
    student_logits, teacher_logits = (
        model(input_ids=contexts.input_ids, attention_mask=contexts.attention_mask, position_ids=positions).logits
        for model in (student, teacher)
    )
    mask = contexts.completion_mask[:, 1:]
    output = distillation_loss(
        student_logits[:, :-1],
        teacher_logits[:, :-1],
        torch.zeros_like(mask),  # the exact divergence does not look at the sampled token
        mask,
        estimator="full_rkl",
        vocab_size=vocabulary,
    )
    assert output.reverse_kl is not None  # full_rkl always computes it
    return output.reverse_kl, mask

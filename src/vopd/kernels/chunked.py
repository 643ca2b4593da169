"""The driver: chunk over rows, compute statistics, ask the estimator, write and pass on the gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from vopd.functional import gradient_variance, optimal_baseline, value_baseline
from vopd.functional.moments import computed

from .row_pass import MakePass
from .row_statistics import compute_chunk
from .rows import Batch, Estimate, Needs, Rows
from .sources import LogitSource

CPU_CHUNK = 3 << 21
"""Elements of a logits buffer on a CPU: 24 MiB in float32, where larger chunks stop gaining."""

GPU_CHUNK = 80_000_000
"""Elements of a logits buffer on a GPU with a frozen head: 0.3 GB in float32."""


@dataclass(frozen=True)
class Result:
    """Per-row results of a pass, (N,) each; what was not computed is None."""

    loss: Tensor
    student_logprobs: Tensor
    importance_weights: Tensor
    teacher_logprobs: Tensor | None = None
    rewards: Tensor | None = None
    baseline: Tensor | None = None
    advantages: Tensor | None = None
    reverse_kl: Tensor | None = None
    entropy: Tensor | None = None
    variance_none: Tensor | None = None
    variance_value: Tensor | None = None
    variance_optimal: Tensor | None = None


def chunk_rows(vocab_size: int, device: torch.device, trainable_head: bool) -> int:
    """Rows a chunk. On a GPU 1024 with a trainable head, whose [V, D] accumulator is read and written every chunk;
    with a frozen one, whose memory the buffers are, what fits ``GPU_CHUNK`` in steps of 128: 512 rows at 152k tokens.
    On a CPU whatever keeps a buffer at 24 MiB."""
    if device.type == "cpu":
        return min(1024, max(16, CPU_CHUNK // vocab_size))
    return 1024 if trainable_head else min(1024, max(128, GPU_CHUNK // vocab_size // 128 * 128))


@torch.no_grad()
def run_chunks(
    source: LogitSource,
    batch: Batch,
    estimate: Callable[[Rows], Estimate],
    needs: Needs,
    *,
    make_pass: MakePass,
    top_k: int,
    chunk_size: int,
    diagnostics: bool,
) -> Result:
    """One pass over all rows. The source ends up holding the gradient of the sum of the token losses.

    Args:
        source: gives logits, takes gradients.
        batch: the rows.
        estimate: statistics -> token losses and gradient form; the only thing here that knows the estimator.
        needs: the statistics it reads.
        make_pass: the implementation of the row operations.
        top_k: k of its support.
        chunk_size: rows at a time.
        diagnostics: also compute entropy and the closed-form variances.
    """
    wants_gradient = any(gradient is not None for gradient in source.gradients())
    results = []
    # Every dtype below is chosen with care, so autocast must not choose again.
    with torch.autocast(batch.rows.device.type, enabled=False):
        for part in batch.chunks(chunk_size):
            chunk = compute_chunk(source, part, needs, top_k, diagnostics, make_pass)
            result = estimate(chunk.rows)
            if wants_gradient:
                source.accumulate(part.rows, chunk.gradient(result.form))
            results.append(_summary(chunk.rows, result))
    return _concatenate(results)


def _summary(rows: Rows, estimate: Estimate) -> Result:
    """What of the statistics and the estimate a caller gets to see; exact quantities only where they were computed."""
    result = Result(
        loss=estimate.loss,
        student_logprobs=rows.student_logprobs,
        importance_weights=rows.importance,
        teacher_logprobs=rows.teacher_logprobs,
        rewards=rows.rewards,
        baseline=estimate.baseline,
        advantages=estimate.advantages,
        entropy=rows.entropy,
    )
    if rows.other_difference is None:
        return result
    moments = rows.moments()
    top_reward = computed(rows.top_reward)
    result = replace(result, reverse_kl=-(top_reward + value_baseline(moments)))
    if moments.reward_square is None:
        return result
    return replace(
        result,
        variance_none=gradient_variance(moments, -top_reward),
        variance_value=gradient_variance(moments, value_baseline(moments)),
        variance_optimal=gradient_variance(moments, optimal_baseline(moments)),
    )


def _concatenate(results: list[Result]) -> Result:
    names = [f.name for f in fields(Result) if getattr(results[0], f.name) is not None]
    return Result(**{name: torch.cat([getattr(result, name) for result in results]) for name in names})

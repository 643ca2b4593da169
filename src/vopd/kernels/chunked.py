"""Runs a loss chunk by chunk: compute statistics, call the estimator, write and pass on the gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from vopd.functional import (
    centred_optimal_baseline,
    centred_value_baseline,
    gradient_variance_from_centred,
    value_baseline,
)
from vopd.functional.moments import not_none

from .logits import LogitSource
from .output import DistillationOutput, Variance
from .row_pass import MakePass
from .row_statistics import compute_chunk
from .rows import Batch, Estimate, Needs, Rows

CPU_CHUNK = 3 << 21
"""Elements of a logits buffer on a CPU: 24 MiB in float32; larger chunks are not faster."""

GPU_CHUNK = 80_000_000
"""Elements of a logits buffer on a GPU with a frozen head: 0.3 GB in float32."""


def chunk_rows(vocab_size: int, device: torch.device, trainable_head: bool) -> int:
    """Return the number of rows per chunk.

    On a GPU with a trainable head it is 1024, because the [V, D] gradient is read and written once per chunk. With a
    frozen head the buffers are most of the memory, so it is the largest multiple of 128 that fits ``GPU_CHUNK``: 512
    rows for a vocabulary of 152k. On a CPU a buffer is kept at 24 MiB.
    """
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
) -> DistillationOutput:
    """Run one pass over all rows. Afterwards the source has the gradient of the sum of the token losses.

    Args:
        source: provides logits and takes gradients.
        batch: the rows.
        estimate: function from statistics to token losses and gradient form: the estimator.
        needs: the statistics that the estimator reads.
        make_pass: the implementation of the row operations.
        top_k: k of the estimator's support.
        chunk_size: rows per chunk.
        diagnostics: also compute entropy and closed-form variances.

    Returns:
        The output of each row, (N,) each, with ``loss`` the token losses.
    """
    wants_gradient = any(gradient is not None for gradient in source.gradients())
    results = []
    # Dtypes are chosen explicitly below; autocast must not change them.
    with torch.autocast(batch.rows.device.type, enabled=False):
        for part in batch.chunks(chunk_size):
            chunk = compute_chunk(source, part, needs, top_k, diagnostics, make_pass)
            result = estimate(chunk.rows.asked_for(needs) if diagnostics else chunk.rows)
            if wants_gradient:
                source.accumulate(part.rows, chunk.gradient(result.form))
            results.append(_summary(chunk.rows, result))
    return DistillationOutput.join(results, torch.cat)


def _summary(rows: Rows, estimate: Estimate) -> DistillationOutput:
    """Collect the output of a chunk; exact quantities only if they were computed."""
    found = DistillationOutput(
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
        return found
    moments = rows.moments()
    found = replace(found, reverse_kl=-value_baseline(moments))
    if moments.centred_reward_square is None:
        return found
    centred = (-not_none(rows.top_reward), centred_value_baseline(moments), centred_optimal_baseline(moments))
    return replace(found, variance=Variance(*(gradient_variance_from_centred(moments, one) for one in centred)))

"""The two loss functions: from full logits, and from hidden states and output heads."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vopd.errors import ConfigurationError
from vopd.kernels import (
    Batch,
    DenseLogits,
    DistillationOutput,
    Head,
    LinearHeads,
    TorchPass,
    choose_pass,
    chunk_rows,
    run_chunks,
)
from vopd.kernels.logits import LogitSource
from vopd.kernels.row_pass import MakePass

from . import checks
from .base import Estimator, with_extra_advantages
from .catalogue import find_estimator
from .gradient import GradientInHand, outside_compilation
from .teacher_scores import TopKScores

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped


@outside_compilation
def distillation_loss(
    student_logits: Float[Tensor, "*tokens V_s"],
    teacher_logits: Float[Tensor, "*tokens V_t"] | None,
    completion_ids: Int[Tensor, "*tokens"],
    completion_mask: Shaped[Tensor, "*tokens"] | None = None,
    *,
    estimator: str | Estimator = "vopd",
    top_k: int | None = None,
    temperature: float = 1.0,
    normalizer: Shaped[Tensor, ""] | float | None = None,
    teacher_scores: TopKScores | None = None,
    importance_weights: Float[Tensor, "*tokens"] | None = None,
    rollout_logprobs: Float[Tensor, "*tokens"] | None = None,
    importance_cap: float = 2.0,
    extra_advantages: Float[Tensor, "*tokens"] | None = None,
    vocab_size: int | None = None,
    diagnostics: bool = False,
    chunk_size: int | None = None,
) -> DistillationOutput:
    """On-policy distillation loss from full logits.

    The loss is the sum of the token losses over the tokens in ``completion_mask``, divided by ``normalizer``. For
    policy-gradient estimators the token loss is ``-sg[w (r_y - b)] log p(y)``: p and q are the student's and the
    teacher's probabilities, r = log q - log p is the reward, b a baseline that does not depend on the sampled token y,
    w an importance weight, and sg stops the gradient. For ``full_rkl`` and ``top_k_rkl`` it is the KL itself.

    Logits at position t must predict ``completion_ids[:, t]``: shift them before the call.

    Args:
        student_logits: (B, T, V) or (N, V); the only input that gets gradient.
        teacher_logits: (B, T, V') or (N, V'); None with ``teacher_scores``. Both models' logits are cut to the common
            vocabulary before the softmax.
        completion_ids: y, sampled from the student's full distribution at ``temperature``, (B, T) or (N,).
        completion_mask: nonzero for tokens in the loss, same shape; None takes all tokens.
        estimator: a name in ``vopd.ESTIMATORS``, ``module:NAME``, or your own ``Estimator``.
        top_k: k, for the estimators that use a top k.
        temperature: both models' logits are divided by it.
        normalizer: divisor of the summed loss; by default the number of tokens in the mask.
        teacher_scores: scores from a teacher server, instead of teacher logits, at the same temperature.
        importance_weights: w of each token, (B, T) or (N,); applied to sampled terms only.
        rollout_logprobs: alternatively, log p(y) reported by the sampler, (B, T) or (N,); then w =
            min(exp(log p(y) - rollout_logprobs), importance_cap).
        importance_cap: largest weight computed from ``rollout_logprobs``.
        extra_advantages: e, (B, T) or (N,), in nats, added to the advantage of the sampled token, A = sg[r_y - b + e];
            for example the reward of the whole completion minus the mean reward of the others in its group. Estimators
            that sum tokens exactly keep that sum and add the sampled term ``-sg[w e] log p(y)``.
        vocab_size: number of real tokens, if the output rows of both models are padded beyond it.
        diagnostics: also return the student's entropy and, with the teacher's full distribution, exact KL and
            variances.
        chunk_size: tokens processed at a time; affects speed and memory, not the result.

    Returns:
        A ``DistillationOutput``. Its loss can be backpropagated once.

    Raises:
        ConfigurationError: the estimator is unknown, shapes do not match, ``top_k`` is missing or invalid, or an id is
            outside the vocabulary.

    Source: arXiv 2605.07865 for the paper's estimators; docs/concepts/estimators.md has every formula.
    """
    chosen = find_estimator(estimator)
    checks.check_teacher(chosen, teacher_logits, teacher_scores)
    checks.check_leading("student_logits", student_logits, completion_ids.shape, trailing=1)
    checks.check_leading("teacher_logits", teacher_logits, completion_ids.shape, trailing=1)
    teacher_rows = None if teacher_logits is None else teacher_logits.shape[-1]
    source = DenseLogits(
        _flat(student_logits),
        None if teacher_logits is None else _flat(teacher_logits),
        vocab_size=checks.common_vocabulary(student_logits.shape[-1], teacher_rows, vocab_size),
        temperature=_checked_temperature(temperature),
        wants_gradient=_wants_gradient(student_logits),
    )
    batch = _batch(
        source, completion_ids, completion_mask, teacher_scores,
        importance_weights, rollout_logprobs, importance_cap, extra_advantages,
    )  # fmt: skip
    return _distill(
        chosen, source, batch, [student_logits], completion_ids.shape, TorchPass,
        checks.resolve_top_k(chosen, top_k, teacher_scores, source.vocab_size),
        normalizer, diagnostics,
        chunk_size or chunk_rows(source.vocab_size, batch.rows.device, trainable_head=True),
    )  # fmt: skip


@outside_compilation
def linear_distillation_loss(
    student_hidden: Float[Tensor, "*tokens D_s"],
    student_head: Float[Tensor, "V_s D_s"],
    teacher_hidden: Float[Tensor, "*tokens D_t"] | None,
    teacher_head: Float[Tensor, "V_t D_t"] | None,
    completion_ids: Int[Tensor, "*tokens"],
    completion_mask: Shaped[Tensor, "*tokens"] | None = None,
    *,
    estimator: str | Estimator = "vopd",
    top_k: int | None = None,
    temperature: float = 1.0,
    normalizer: Shaped[Tensor, ""] | float | None = None,
    teacher_scores: TopKScores | None = None,
    importance_weights: Float[Tensor, "*tokens"] | None = None,
    backend: str = "auto",
    rollout_logprobs: Float[Tensor, "*tokens"] | None = None,
    importance_cap: float = 2.0,
    extra_advantages: Float[Tensor, "*tokens"] | None = None,
    vocab_size: int | None = None,
    diagnostics: bool = False,
    chunk_size: int | None = None,
    student_bias: Float[Tensor, " V_s"] | None = None,
    teacher_bias: Float[Tensor, " V_t"] | None = None,
    student_logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
) -> DistillationOutput:
    """On-policy distillation loss from hidden states and output heads, fused: full logits are never in memory at once.

    Computes ``distillation_loss`` of logits = hidden @ head.T for a chunk of tokens at a time, with the same value and
    gradient. The gradient is computed in the forward pass: (D_s + D_t) + 2 D_s products of 2 N V operations each with a
    trainable head, (D_s + D_t) + D_s with a frozen one. ``vopd_sparse`` and ``top_k_rkl`` read only the rows of the
    teacher's head that they need. Arguments that are not listed below are those of ``distillation_loss``.

    Args:
        student_hidden: last hidden states, (B, T, D_s) or (N, D_s); gets gradient.
        student_head: output weights, (V, D_s); gets gradient if it requires gradient.
        teacher_hidden: (B, T, D_t) or (N, D_t); D_t may differ from D_s. None with ``teacher_scores``.
        teacher_head: (V', D_t); V' may differ from V. None with ``teacher_scores``.
        completion_ids: as in ``distillation_loss``.
        backend: "torch", "triton", or "auto" for the fastest one available here.
        student_bias: bias of the student's output layer, (V,); gets gradient if it requires gradient.
        teacher_bias: bias of the teacher's output layer, (V',).
        student_logit_scale: factor of the student's logits, bias included (Cohere).
        teacher_logit_scale: factor of the teacher's logits, bias included.
        student_softcap: cap in logits = cap tanh(logits / cap), applied after the scale and before the temperature
            (Gemma).
        teacher_softcap: the same for the teacher.

    Returns:
        A ``DistillationOutput``. Its loss can be backpropagated once.

    Raises:
        ConfigurationError: as in ``distillation_loss``; the backend is unknown, or "triton" without a GPU.
        MissingExtraError: backend "triton" without triton installed.
    """
    chosen = find_estimator(estimator)
    make_pass = choose_pass(backend, student_hidden.device)
    checks.check_teacher(chosen, teacher_hidden, teacher_scores)
    checks.check_leading("student_hidden", student_hidden, completion_ids.shape, trailing=1)
    checks.check_leading("teacher_hidden", teacher_hidden, completion_ids.shape, trailing=1)
    checks.check_head("student", student_hidden, student_head)
    checks.check_head("teacher", teacher_hidden, teacher_head)
    student = _head("student", student_head, student_bias, student_logit_scale, student_softcap)
    teacher = None
    if teacher_head is not None:
        teacher = _head("teacher", teacher_head, teacher_bias, teacher_logit_scale, teacher_softcap)
    inputs = [student_hidden, student_head, student_bias]
    wants = [_wants_gradient(tensor) for tensor in inputs]
    source = LinearHeads(
        _flat(student_hidden),
        student,
        None if teacher_hidden is None else _flat(teacher_hidden),
        teacher,
        vocab_size=checks.common_vocabulary(
            len(student_head), None if teacher_head is None else len(teacher_head), vocab_size
        ),
        temperature=_checked_temperature(temperature),
        wants=wants,
    )
    batch = _batch(
        source, completion_ids, completion_mask, teacher_scores,
        importance_weights, rollout_logprobs, importance_cap, extra_advantages,
    )  # fmt: skip
    return _distill(
        chosen, source, batch, inputs, completion_ids.shape, make_pass,
        checks.resolve_top_k(chosen, top_k, teacher_scores, source.vocab_size),
        normalizer, diagnostics,
        chunk_size or chunk_rows(source.vocab_size, batch.rows.device, trainable_head=wants[1]),
    )  # fmt: skip


def _distill(
    estimator: Estimator,
    source: LogitSource,
    batch: Batch,
    inputs: list[Tensor | None],
    shape: torch.Size,
    make_pass: MakePass,
    top_k: int,
    normalizer: Tensor | float | None,
    diagnostics: bool,
    chunk_size: int,
) -> DistillationOutput:
    """Run the pass and attach the gradients that it left in ``source`` to their inputs.

    These are gradients of the plain sum. The division by the normalizer comes after, so that autograd passes it on
    together with any factor that the caller applies to the loss.
    """
    result = run_chunks(
        source,
        batch,
        lambda rows: with_extra_advantages(rows, checks.checked_estimate(estimator, rows)),
        estimator.needs,
        make_pass=make_pass,
        top_k=top_k,
        chunk_size=chunk_size,
        diagnostics=diagnostics,
    )
    total = result.loss.sum()
    gradients = [None if g is None or x is None else g.view_as(x) for g, x in zip(source.gradients(), inputs)]
    if any(gradient is not None for gradient in gradients):
        total = GradientInHand.apply(total, gradients, *inputs)
    spread = result.map(lambda values: values.new_zeros(shape.numel()).index_copy_(0, batch.rows, values).view(shape))
    return replace(spread, loss=total * _weight(normalizer, batch, source.dtype))


def _head(model: str, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None) -> Head:
    """Check the options of an output head and return the head without gradient."""
    checks.check_head_options(model, weight, bias, scale, softcap)
    return Head(weight.detach(), None if bias is None else bias.detach(), float(scale), softcap)


def _weight(normalizer: Tensor | float | None, batch: Batch, dtype: torch.dtype) -> Tensor:
    """Return 1 / normalizer as a scalar tensor; 0 without rows, whatever the normalizer is."""
    if len(batch.rows) == 0:
        return batch.rows.new_zeros((), dtype=dtype)
    count = len(batch.rows) if normalizer is None else normalizer
    # A plain number stays on the host, where it multiplies tensors of any device: a copy would wait for the device.
    device = batch.rows.device if isinstance(count, Tensor) else torch.device("cpu")
    return 1 / torch.as_tensor(count, dtype=dtype, device=device).detach()


def _batch(
    source: LogitSource,
    completion_ids: Tensor,
    completion_mask: Tensor | None,
    scores: TopKScores | None,
    importance_weights: Tensor | None,
    rollout_logprobs: Tensor | None,
    importance_cap: float,
    extra_advantages: Tensor | None,
) -> Batch:
    """Pack the tokens in the mask, in order, and check the shape of every per-token argument."""
    if importance_weights is not None and rollout_logprobs is not None:
        raise ConfigurationError("pass importance_weights or rollout_logprobs, not both")
    shape = completion_ids.shape
    checks.check_leading("completion_mask", completion_mask, shape)
    rows = _rows(completion_ids.reshape(-1), completion_mask, source.vocab_size)

    def pack(name: str, values: Tensor | None, trailing: int = 0) -> Tensor | None:
        checks.check_leading(name, values, shape, trailing)
        if values is None:
            return None
        packed = values.detach().reshape(shape.numel(), *values.shape[values.ndim - trailing :])[rows]
        return packed if name == "top_k_ids" else packed.to(source.dtype)  # numpy's numbers are float64

    batch = Batch(
        rows=rows,
        sampled_ids=completion_ids.reshape(-1)[rows],
        teacher_logprobs=None if scores is None else pack("sampled_logprobs", scores.sampled_logprobs),
        top_k_ids=None if scores is None else pack("top_k_ids", scores.top_k_ids, 1),
        top_k_logprobs=None if scores is None else pack("top_k_logprobs", scores.top_k_logprobs, 1),
        chosen=scores is not None and scores.chosen,
        importance=pack("importance_weights", importance_weights),
        rollout_logprobs=pack("rollout_logprobs", rollout_logprobs),
        importance_cap=importance_cap,
        extra_advantages=pack("extra_advantages", extra_advantages),
    )
    if batch.top_k_ids is None or batch.top_k_logprobs is None:
        return batch
    known = checks.checked_top_k_ids(batch.top_k_ids, batch.top_k_logprobs, source.vocab_size)
    return replace(batch, top_k_ids=known)


def _rows(ids: Tensor, mask: Tensor | None, vocab_size: int) -> Tensor:
    """Return the positions of the tokens in the mask, (N,), and check their ids.

    The host waits for the device here, once: it needs the count to split the tokens into chunks. A second wait would
    include all work queued in between.
    """
    counted = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.reshape(-1).to(ids.device) != 0
    if not len(ids):
        return ids.new_empty(0, dtype=torch.long)
    known = ids.masked_fill(~counted, 0).long()
    count, lowest, highest = torch.stack([counted.sum(), known.min(), known.max()]).tolist()
    if lowest < 0 or highest >= vocab_size:
        checks.check_ids(ids[counted], vocab_size, "completion_ids")
    return counted.nonzero_static(size=count).squeeze(-1)


def _checked_temperature(temperature: float) -> float:
    if not temperature > 0:
        raise ConfigurationError(f"temperature must be above 0, not {temperature}: greedy rollouts give no gradient")
    return float(temperature)


def _wants_gradient(tensor: Tensor | None) -> bool:
    return tensor is not None and torch.is_grad_enabled() and tensor.requires_grad


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1, tensor.shape[-1])

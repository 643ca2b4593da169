"""Estimates the memory of a training step before any weight is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .loading import BITS

# Logits of both models, their difference and the gradient, for one chunk of tokens.
_LOSS_BUFFERS = 4
_CHUNK_TOKENS = 1024
_STATES_OF_ADAM = 2


@dataclass(frozen=True)
class Footprint:
    """Estimated bytes of one training step on one device, good to a factor of about 1.5.

    Attributes:
        student: the student's weights.
        teacher: the teachers' weights.
        gradients: gradients of the trained weights.
        optimizer: optimizer states of the trained weights, for Adam.
        activations: activations for the backward pass of one micro-batch, and for the teacher's forward pass.
        loss: buffers of the distillation loss.
        rollout: the student's key-value cache during generation; 0 if another engine generates.
        offloaded: the part of the teachers' weights that is on the host except while they score.
    """

    student: int
    teacher: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    rollout: int
    offloaded: int = 0

    @property
    def peak(self) -> int:
        """Peak bytes of a step. Rollout, scoring and loss run one after another, so the largest of them counts."""
        fixed = self.student + self.teacher - self.offloaded + self.gradients + self.optimizer
        return fixed + max(self.rollout, self.activations + max(self.loss, self.offloaded))

    def sharded(self, devices: int) -> Footprint:
        """The same with weights, gradients and optimizer states divided among so many devices."""
        parts = ("student", "teacher", "gradients", "optimizer", "offloaded")
        return replace(self, **{name: math.ceil(getattr(self, name) / devices) for name in parts})


@dataclass(frozen=True)
class Step:
    """The sizes that determine the memory of a step.

    Attributes:
        sequences: sequences in a micro-batch on one device.
        generated: completions that the model generates at the same time on one device.
        tokens: tokens of a sequence, prompt and completion.
        completion_tokens: tokens of its completion.
        checkpointing: whether activations are recomputed in the backward pass.
        half: whether forward passes run in bf16 or fp16.
    """

    sequences: int
    generated: int
    tokens: int
    completion_tokens: int
    checkpointing: bool
    half: bool


def footprint(
    student: Any,
    teachers: Sequence[Any],
    *,
    student_dtype: str,
    teacher_dtype: str,
    step: Step,
    quantization: str | None = None,
    teacher_quantization: str | None = None,
    teacher_offload: bool = False,
    copied: bool = False,
) -> Footprint:
    """Estimate the memory of a step from models without weights (`load_skeleton`).

    Args:
        student: the student with its adapters, if any; parameters that require gradient are trained.
        teachers: the frozen teachers on this device.
        student_dtype: dtype as in `load_model`; "auto" is the saved dtype.
        teacher_dtype: likewise, for the teachers.
        step: the sizes of a step.
        quantization: quantization of the student, as in `load_model`.
        teacher_quantization: quantization of the teachers, as in `load_model`.
        teacher_offload: whether teachers are on the host except while they score.
        copied: whether a copy of the trained weights is an additional teacher.
    """
    own = bytes_per_weight(student, student_dtype)
    trained = sum(weight.numel() for weight in student.parameters() if weight.requires_grad)
    still = [weight for weight in student.parameters() if not weight.requires_grad]
    frozen = weight_bytes(still, student, own, quantization)
    # Adapters are kept in float32 whatever the base model's dtype.
    trained_bytes = trained * (4 if frozen else own)
    head = student.get_output_embeddings().weight
    vocabulary, width = head.shape
    activation = 2 if step.half else max(own, 2)
    head_gradient = 4 * head.numel() if head.requires_grad else 0
    tokens, completion_tokens = step.sequences * step.tokens, step.sequences * step.completion_tokens
    _, activations, cached = _elements(student, step.checkpointing)
    teacher_bytes = scoring = 0
    for teacher in teachers:
        each = bytes_per_weight(teacher, teacher_dtype)
        teacher_bytes += weight_bytes(list(teacher.parameters()), teacher, each, teacher_quantization)
        scoring = max(scoring, _elements(teacher)[0] * tokens * each)
    return Footprint(
        student=frozen + trained_bytes,
        teacher=teacher_bytes + (4 * trained if copied else 0),
        gradients=trained_bytes,
        optimizer=_STATES_OF_ADAM * trained_bytes,
        activations=tokens * activations * activation + scoring,
        loss=_LOSS_BUFFERS * min(_CHUNK_TOKENS, completion_tokens) * vocabulary * 4
        + head_gradient
        + completion_tokens * width * 4,
        rollout=cached * step.generated * step.tokens * activation,
        offloaded=teacher_bytes if teacher_offload else 0,
    )


def weight_bytes(weights: Sequence[Any], model: Any, each: int, quantization: str | None) -> int:
    """Return the bytes of `weights` of `model` at `each` bytes per number, with its linear layers quantized.

    4-bit layers have a quantized scale per block of 64 numbers, which adds 0.127 bits per number; 8-bit layers have a
    scale per row.
    """
    if quantization is None:
        return sum(weight.numel() for weight in weights) * each
    head = model.get_output_embeddings()
    linear = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head}
    bits = BITS[quantization] + (0.127 if quantization == "4bit" else 0)
    return int(sum(weight.numel() * (bits / 8 if id(weight) in linear else each) for weight in weights))


def bytes_per_weight(model: Any, dtype: str) -> int:
    """Return the bytes per weight of a model loaded with `dtype`; "auto" is the dtype in its configuration."""
    chosen = getattr(model.config, "dtype", None) if dtype == "auto" else getattr(torch, dtype)
    return int(chosen.itemsize) if isinstance(chosen, torch.dtype) else 4


def _elements(model: Any, checkpointing: bool = False) -> tuple[int, int, int]:
    """Return elements per token: activations that one layer saves, that all layers save, and the key-value cache.

    A layer saves those of its norms, its attention and its gated feed-forward block. With `checkpointing` only the
    states between layers are saved, and one layer at a time is recomputed.
    """
    config = model.config.get_text_config()
    layers, width, heads = config.num_hidden_layers, config.hidden_size, config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or width // heads
    key_values = (getattr(config, "num_key_value_heads", None) or heads) * head_width
    inner = getattr(config, "intermediate_size", None) or 4 * width
    layer = 4 * width + 3 * heads * head_width + 4 * key_values + 4 * inner
    kept = layers * width + layer if checkpointing else layers * layer
    return layer, kept, 2 * layers * key_values

"""How much memory a training step takes, estimated before any weight is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .loading import BITS

# Logits of both models, their difference and the gradient, a chunk of tokens at a time.
_LOSS_BUFFERS = 4
_CHUNK_TOKENS = 1024
_STATES_OF_ADAM = 2


@dataclass(frozen=True)
class Footprint:
    """Bytes of one training step on one device, nothing sharded; estimates, good to a factor of about 1.5.

    Attributes:
        student, teacher: weights.
        gradients, optimizer: of the trained weights; the optimizer is taken to be Adam.
        activations: what the backward pass of one micro-batch needs, and the teacher's forward pass.
        loss: buffers of the distillation loss.
        offloaded: of the teacher's weights, what is on the host but for the time of a scoring.
        rollout: the student's key-value cache while a step's completions are generated; 0 where another engine does.
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
        """Rollout, scoring and loss come one after the other: the largest counts."""
        fixed = self.student + self.teacher - self.offloaded + self.gradients + self.optimizer
        return fixed + max(self.rollout, self.activations + max(self.loss, self.offloaded))


@dataclass(frozen=True)
class Step:
    """The sizes of a step that memory depends on.

    Attributes:
        sequences: of a micro-batch on one device.
        generated: completions that the model itself generates together on one device.
        tokens: of a whole sequence, prompt and completion.
        completion_tokens: of its completion.
        checkpointing: activations are computed again in the backward pass.
        half: forward passes run in bf16 or fp16.
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
    """Estimate the memory of a step for skeletons (`load_skeleton`), the student with its adapters if it has any.

    Args:
        student: trainable parameters are those that require gradient.
        teachers: those on this device, frozen.
        student_dtype, teacher_dtype: as `load_model` takes them; "auto" is as saved.
        step: sizes of a step.
        quantization, teacher_quantization: as `load_model` takes it.
        teacher_offload: teachers are on the host between scorings.
        copied: a copy of the trained weights is a teacher besides.
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
    """Bytes of `weights` of `model`, `each` bytes a number; with `quantization` those of its linear layers in few bits.

    In 4 bits with a scale a block of 64 that is itself quantized (0.127 bits a number more), in 8 bits with one a row.
    """
    if quantization is None:
        return sum(weight.numel() for weight in weights) * each
    head = model.get_output_embeddings()
    linear = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head}
    bits = BITS[quantization] + (0.127 if quantization == "4bit" else 0)
    return int(sum(weight.numel() * (bits / 8 if id(weight) in linear else each) for weight in weights))


def bytes_per_weight(model: Any, dtype: str) -> int:
    """Bytes of one weight of a model loaded with `dtype`; "auto" is the dtype that its configuration names."""
    chosen = getattr(model.config, "dtype", None) if dtype == "auto" else getattr(torch, dtype)
    return int(chosen.itemsize) if isinstance(chosen, torch.dtype) else 4


def _elements(model: Any, checkpointing: bool = False) -> tuple[int, int, int]:
    """Elements a token: what one layer keeps for its backward pass, what all of them keep, and the key-value cache.

    A layer keeps its norms, its attention and its gated feed-forward block. With `checkpointing` those of one layer at
    a time are computed again, from the states between the layers.
    """
    config = model.config.get_text_config()
    layers, width, heads = config.num_hidden_layers, config.hidden_size, config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or width // heads
    key_values = (getattr(config, "num_key_value_heads", None) or heads) * head_width
    inner = getattr(config, "intermediate_size", None) or 4 * width
    layer = 4 * width + 3 * heads * head_width + 4 * key_values + 4 * inner
    kept = layers * width + layer if checkpointing else layers * layer
    return layer, kept, 2 * layers * key_values

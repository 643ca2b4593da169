"""Estimates the memory of a training step before any weight is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vopd.kernels import chunk_rows

from .loading import BITS

_STATES_OF_ADAM = 2
# The next token's logits in float32, the same without excluded ids, their probabilities, and the noise of the draw.
_BUFFERS_OF_SAMPLING = 4


@dataclass(frozen=True)
class Footprint:
    """Estimated bytes of one training step on one device, without what its allocator keeps unused.

    Attributes:
        student: the student's weights.
        teacher: the teachers' weights; of one behind a server that sends hidden states, those of its output head.
        gradients: gradients of the trained weights.
        optimizer: optimizer states of the trained weights, for Adam.
        activations: what autograd keeps of the student's forward pass on one micro-batch.
        scoring: a teacher's forward pass, one layer at a time, and its weights if they were on the host.
        loss: buffers of the distillation loss, with the gradients of head and hidden states.
        heads: float32 copies of the output heads, which the loss needs on a CPU.
        rollout: key-value cache and logits during generation; 0 if another engine generates.
        offloaded: the part of the teachers' weights that is on the host except while they score.
        process: the process before models are loaded, if they are in the same memory: on a CPU.
        states: a teacher's hidden states of a generated batch that it scores as a whole, or on a CPU a server sends.
        host: hidden states of a generated batch that a server sends, in the host's memory.
    """

    student: int
    teacher: int
    gradients: int
    optimizer: int
    activations: int
    scoring: int
    loss: int
    heads: int
    rollout: int
    offloaded: int = 0
    process: int = 0
    states: int = 0
    host: int = 0

    @property
    def peak(self) -> int:
        """Peak bytes of a step. Rollout, scoring and loss run one after another, so the largest of them counts."""
        fixed = self.process + self.student + self.teacher - self.offloaded + self.gradients + self.optimizer
        update = self.states + self.activations + max(self.scoring, self.loss + self.heads)
        return fixed + max(self.rollout, update)

    def sharded(self, devices: int) -> Footprint:
        """The same with weights, gradients and optimizer states divided among so many devices."""
        parts = ("student", "teacher", "gradients", "optimizer", "offloaded")
        return replace(self, **{name: math.ceil(getattr(self, name) / devices) for name in parts})


@dataclass(frozen=True)
class Step:
    """The sizes that determine the memory of a step.

    Attributes:
        sequences: sequences in a micro-batch on one device. A fraction, if a number of tokens is the limit: shorter
            sequences than these can fill the rest.
        generated: completions that the model generates at the same time on one device.
        tokens: tokens of a sequence, prompt and completion.
        completion_tokens: tokens of its completion.
        checkpointing: whether activations are recomputed in the backward pass.
        half: whether forward passes run in bf16 or fp16.
        device: type of the device, such as "cuda".
        process: as in `Footprint`.
        kept: completions whose teacher's states are kept on the device from before the first micro-batch.
        sent: completions whose hidden states a server sends before the first micro-batch.
        sent_bytes: bytes of a number of these.
    """

    sequences: float
    generated: int
    tokens: int
    completion_tokens: int
    checkpointing: bool
    half: bool
    device: str
    process: int = 0
    kept: int = 0
    sent: int = 0
    sent_bytes: int = 2


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
    served: Sequence[Any] = (),
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
        served: the teachers whose hidden states servers send; their heads, in the saved dtype, are on this device.
    """
    own = bytes_per_weight(student, student_dtype)
    trained = sum(weight.numel() for weight in student.parameters() if weight.requires_grad)
    still = [weight for weight in student.parameters() if not weight.requires_grad]
    frozen = weight_bytes(still, student, own, quantization)
    # Adapters are kept in float32 whatever the base model's dtype.
    trained_bytes = trained * (4 if frozen else own)
    each = 2 if step.half else own
    tokens, layers = round(step.sequences * step.tokens), student.config.get_text_config().num_hidden_layers
    layer = tokens * _kept_by_layer(student, each)
    casts = _casts(student, own if quantization is None else 0) if step.half else 0
    if step.checkpointing:  # the states between layers, and one layer that is computed again
        activations = tokens * layers * student.config.get_text_config().hidden_size * each + layer
    else:
        activations = layers * layer + casts
    weights, scoring, states = [], [], []
    for teacher in teachers:
        saved = bytes_per_weight(teacher, teacher_dtype)
        weights.append(weight_bytes(list(teacher.parameters()), teacher, saved, teacher_quantization))
        number = 2 if step.half else saved
        states.append(teacher.config.get_text_config().hidden_size * number)
        forward = tokens * _kept_by_layer(teacher, number)
        scoring.append(forward + (weights[-1] if teacher_offload else 0))
    heads = [weight_bytes(list(_output(one).parameters()), one, bytes_per_weight(one, "auto"), None) for one in served]
    away = teacher_offload and step.device != "cpu"
    widest = max((_head(one).shape[1] for one in served), default=0)
    sent = step.sent * step.completion_tokens * widest * step.sent_bytes
    return Footprint(
        student=frozen + trained_bytes,
        teacher=sum(weights) + (4 * trained if copied else 0) + sum(heads),
        gradients=trained_bytes,
        optimizer=_STATES_OF_ADAM * trained_bytes,
        activations=activations,
        # Autocast keeps its copies until the teacher has scored, even of layers that are computed again.
        scoring=max(scoring, default=0) + (casts if step.checkpointing else 0),
        loss=_loss(student, step, each, with_teacher=bool(teachers or served) or copied)
        + _received(served, step)
        + (max(heads, default=0) if away else 0),
        heads=_float32_heads(
            student, own, [*((one, teacher_dtype) for one in teachers), *((one, "auto") for one in served)], step
        ),
        rollout=step.generated
        * (step.tokens * _cached(student) * each + 4 * _BUFFERS_OF_SAMPLING * len(_head(student))),
        offloaded=(sum(weights) if teacher_offload else 0) + (sum(heads) if away else 0),
        process=step.process,
        states=step.kept * step.completion_tokens * max(states, default=_head(student).shape[1] * each)
        + (sent if step.device == "cpu" else 0),
        host=sent,
    )


def _loss(student: Any, step: Step, each: int, with_teacher: bool) -> int:
    """Logits of a chunk of tokens for one or both models, and the gradients of the head and of the hidden states."""
    head = _head(student)
    vocabulary, width = head.shape
    completion_tokens = round(step.sequences * step.completion_tokens)
    rows = min(completion_tokens, chunk_rows(vocabulary, torch.device(step.device), head.requires_grad))
    buffers = 4 * rows * vocabulary * (1 + with_teacher)
    return buffers + (4 * head.numel() if head.requires_grad else 0) + completion_tokens * width * each


def _received(served: Sequence[Any], step: Step) -> int:
    """Hidden states of a micro-batch as the loss takes them: in the head's dtype, or in that of the server's states."""
    tokens = round(step.sequences * step.completion_tokens)
    widths = (_head(one).shape[1] * max(step.sent_bytes, bytes_per_weight(one, "auto")) for one in served)
    return tokens * max(widths, default=0)


def _float32_heads(student: Any, own: int, teachers: Sequence[tuple[Any, str]], step: Step) -> int:
    """On a CPU torch rounds the products of half-precision factors, so the loss multiplies with float32 copies."""
    if step.device != "cpu":
        return 0
    heads = [(_head(teacher), bytes_per_weight(teacher, dtype)) for teacher, dtype in teachers]
    copies = [4 * head.numel() for head, each in heads if step.half or each < 4]
    return (4 * _head(student).numel() if step.half or own < 4 else 0) + max(copies, default=0)


def _casts(student: Any, own: int) -> int:
    """Bytes of autocast's copies of float32 weights, which the backward pass needs; `own` bytes per frozen weight."""
    modules = [module for module in student.modules() if isinstance(module, torch.nn.Linear)]
    weights = {id(module.weight): module.weight for module in modules if module.weight is not _head(student)}
    adapted = not all(weight.requires_grad for weight in student.parameters())
    wide = [weight for weight in weights.values() if own == 4 or (adapted and weight.requires_grad)]
    return 2 * sum(weight.numel() for weight in wide)


def _output(model: Any) -> torch.nn.Module:
    module: torch.nn.Module = model.get_output_embeddings()
    return module


def _head(model: Any) -> torch.Tensor:
    weight: torch.Tensor = model.get_output_embeddings().weight
    return weight


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


def _kept_by_layer(model: Any, each: int) -> int:
    """Bytes per token that autograd keeps of a layer with a gated feed-forward block, on average over the layers.

    Norms keep their input in float32 and, if their weights are trained, the normalized values. The attention keeps
    queries, keys and values (repeated for every head of the queries) and its output.

    Args:
        model: the model.
        each: bytes per number of the forward pass.
    """
    trained = any(weight.requires_grad for weight in model.parameters() if weight.dim() == 1)
    normed = any(name.endswith("q_norm") for name, _ in model.named_modules())
    layers = _layers(model)
    return sum(_kept_by(config, each, trained, normed) for config in layers) // len(layers)


def _kept_by(config: Any, each: int, trained: bool, normed: bool) -> int:
    width, queries, keys = config.hidden_size, _heads(config) * _head_width(config), _key_values(config)
    inner = getattr(config, "intermediate_size", None) or 4 * width
    inner = sum(inner) // len(inner) if isinstance(inner, Sequence) else inner  # Gemma 3n has one for each layer
    norms = 4 * 2 * width * (1 + trained) + normed * (queries + keys) * (4 + each * trained)
    # In half precision the inputs of the products are copies of what norms and adapters compute in float32.
    inputs = 2 * width if each > 2 else 5 * width
    return norms + each * (inputs + 4 * queries + 4 * inner)


def _cached(model: Any) -> int:
    """Numbers per token in the key-value cache."""
    return 2 * sum(map(_key_values, _layers(model)))


def _layers(model: Any) -> list[Any]:
    """The configuration of each layer: those of Gemma 4 differ."""
    config = model.config.get_text_config()
    return list(getattr(config, "per_layer_config", None) or [config] * config.num_hidden_layers)


def _key_values(config: Any) -> int:
    heads = getattr(config, "num_key_value_heads", None) or _heads(config)
    return int(heads) * _head_width(config)


def _heads(config: Any) -> int:
    """A layer without attention, such as Mamba's, counts as one head."""
    return int(getattr(config, "num_attention_heads", None) or 1)


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // _heads(config))

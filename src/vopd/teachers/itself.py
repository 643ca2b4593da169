"""The student as its own teacher: as it was, without its adapter, or as an average over its past.

It teaches what it would say under another prompt, such as one with a hint or a reference solution, or, beside a reward,
holds the student near to itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from vopd.errors import ConfigurationError, DataError, check_known
from vopd.models import States
from vopd.models.undisturbed import evaluating
from vopd.placement import Placement, divided_like, whole

from .base import Rollouts, Scored
from .local import InProcess

FROZEN, ADAPTER_OFF, AVERAGE = "self:frozen", "self:base", "self:average"
SELF = (FROZEN, ADAPTER_OFF, AVERAGE)
AVERAGE_FILE = "teacher_average.safetensors"


def is_self(source: Any) -> bool:
    """True where a teacher is the student itself.

    Raises:
        ConfigurationError: it starts like one and is none.
    """
    if not isinstance(source, str) or not source.startswith("self:"):
        return False
    check_known("teacher", source, SELF)
    return True


def check_worth(teachers: Mapping[str, Any], prompts: str | None, rewarded: bool) -> None:
    """Raises ConfigurationError if there is nothing to learn: a teacher that is the student, reading the same prompt.

    Args:
        teachers: by name.
        prompts: the column with the teacher's own prompts.
        rewarded: there is a reward, which such a teacher holds the student back from.
    """
    own = [source for source in teachers.values() if is_self(source)]
    if own and prompts is None and not rewarded:
        raise ConfigurationError(
            f"teacher '{own[0]}' is the student itself and reads the same prompts: there is nothing to learn; give it "
            "prompts of its own with teacher_prompt_column, or a reward"
        )


def check_self(source: str, adapters: bool, in_an_engine: bool) -> None:
    """Raises ConfigurationError where the student cannot teach itself in this way.

    Args:
        source: one of `SELF`.
        adapters: the student has PEFT adapters.
        in_an_engine: DeepSpeed holds the weights.
    """
    if source == ADAPTER_OFF and not adapters:
        raise ConfigurationError(
            f"teacher '{source}' is the student without its adapter, and it has none; train one "
            f"with lora_rank, or take '{FROZEN}'"
        )
    if source == AVERAGE and in_an_engine:
        raise ConfigurationError(
            f"teacher '{source}' does not go with DeepSpeed, which holds teachers in half precision: an average would "
            "round its own steps away; use FSDP2 or DDP"
        )


def copied(student: nn.Module, shared: bool) -> nn.Module:
    """A copy of the student, whole, with float32 weights on the host where they are trained.

    In float32 since a moving average in bf16 would round its own steps away.

    Args:
        student: not wrapped yet; a collective where its weights are in parts.
        shared: frozen weights are the same tensors.
    """
    own: dict[int, Any] = {}
    for weight in student.parameters():
        if weight.requires_grad:
            own[id(weight)] = nn.Parameter(whole(weight).to("cpu", torch.float32, copy=True))
        elif shared:
            own[id(weight)] = weight
        elif weight.numel() == 0:  # quantized ones know themselves how they are copied
            own[id(weight)] = nn.Parameter(whole(weight).cpu(), requires_grad=False)
    twin: nn.Module = copy.deepcopy(student, own)
    return twin


class AdapterOff(InProcess):
    """``Teacher``: the student with its adapter disabled, which takes no memory of its own.

    Called within the student's own forward pass, whose wrapper has its weights at hand.

    Args:
        student: gives the unwrapped student.
        placement: of the run.
    """

    def __init__(self, student: Callable[[], Any], placement: Placement) -> None:
        self._student = student
        self._placement = placement

    @torch.no_grad()
    def score(self, rollouts: Rollouts, student: States) -> list[Scored]:
        """Full rows of the whole micro-batch."""
        model = self._student()
        with model.disable_adapter(), evaluating(model):
            found = self._placement.states(model, "student", rollouts.sequence)
        return [Scored(found.to(student.head.device))]


class MovingAverage(TrainerCallback):
    """Keeps a teacher's weights at an exponential moving average of the student's: m <- d m + (1 - d) w every step.

    The average is saved with every checkpoint, so that a resumed run goes on with it.

    Args:
        teacher: gives the unwrapped teacher, a copy of the student.
        student: gives the unwrapped student.
        decay: d, in (0, 1); the average reaches back about 1 / (1 - d) steps.
    """

    def __init__(self, teacher: Callable[[], nn.Module], student: Callable[[], nn.Module], decay: float) -> None:
        self._teacher = teacher
        self._student = student
        self.decay = decay
        self.names = [name for name, weight in student().named_parameters() if weight.requires_grad]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        averages, weights = self._weights(self._teacher()), self._weights(self._student())
        with torch.no_grad():
            for name, average in averages.items():
                average.lerp_(divided_like(weights[name].detach(), average), 1 - self.decay)

    def save(self, folder: Path, here: bool) -> None:
        """Write the average into the folder of a checkpoint, on the process that is to write it (`here`)."""
        weights = {name: whole(weight).cpu() for name, weight in self._weights(self._teacher()).items()}
        if here:
            save_file(weights, folder / AVERAGE_FILE)

    def load(self, checkpoint: str) -> None:
        """Go on with the average of a checkpoint.

        Raises:
            DataError: it has none.
        """
        path = Path(checkpoint, AVERAGE_FILE)
        if not path.is_file():
            raise DataError(f"{path} is missing: the run of this checkpoint had another teacher than '{AVERAGE}'")
        saved = load_file(path)
        with torch.no_grad():
            for name, average in self._weights(self._teacher()).items():
                average.copy_(divided_like(saved[name], average))

    def _weights(self, model: nn.Module) -> dict[str, Tensor]:
        weights = dict(model.named_parameters())
        return {name: weights[name] for name in self.names}

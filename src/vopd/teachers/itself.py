"""Self-distillation, where the teacher is the student: its initial weights, without its adapter, or a moving average.

Such a teacher passes on what it would say with another prompt, for example one with a hint or a reference solution; or,
together with a reward, it keeps the student close to where it started.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
from .texts import Texts

FROZEN, ADAPTER_OFF, AVERAGE = "self:frozen", "self:base", "self:average"
SELF = (FROZEN, ADAPTER_OFF, AVERAGE)
AVERAGE_FILE = "teacher_average.safetensors"


def is_self(source: Any) -> bool:
    """Whether a teacher is the student itself.

    Raises:
        ConfigurationError: `source` starts with "self:" but is unknown.
    """
    if not isinstance(source, str) or not source.startswith("self:"):
        return False
    check_known("teacher", source, SELF)
    return True


def check_worth(teachers: Mapping[str, Any], prompts: str | None, rewarded: bool) -> None:
    """Raises ConfigurationError if there is nothing to learn: the teacher is the student and reads the same prompt.

    Args:
        teachers: teachers by name.
        prompts: the column with the teacher's own prompts, if there is one.
        rewarded: whether there is a reward, which such a teacher regularizes.
    """
    own = [source for source in teachers.values() if is_self(source)]
    if own and prompts is None and not rewarded:
        raise ConfigurationError(
            f"teacher '{own[0]}' is the student itself and reads the same prompts, so there is nothing to learn; set "
            "teacher_prompt_column to give it other prompts, or add a reward"
        )


def check_self(source: str, adapters: bool, in_an_engine: bool) -> None:
    """Raises ConfigurationError if the student cannot teach itself in this way.

    Args:
        source: one of `SELF`.
        adapters: whether the student has PEFT adapters.
        in_an_engine: whether DeepSpeed holds the weights.
    """
    if source == ADAPTER_OFF and not adapters:
        raise ConfigurationError(
            f"teacher '{source}' is the student without its adapter, but the student has none; train one with "
            f"lora_rank, or use '{FROZEN}'"
        )
    if source == AVERAGE and in_an_engine:
        raise ConfigurationError(
            f"teacher '{source}' does not work with DeepSpeed, which holds teachers in half precision, where the "
            "updates of the average would be rounded away; use FSDP2 or DDP"
        )


def copied(student: nn.Module, shared: bool) -> nn.Module:
    """A full copy of the student; weights that are trained are copied in float32 to the host.

    float32, because a moving average in bf16 would round its updates away.

    Args:
        student: the student before it is wrapped. A collective if its weights are sharded.
        shared: whether the copy shares the student's frozen weights.
    """
    own: dict[int, Any] = {}
    for weight in student.parameters():
        if weight.requires_grad:
            own[id(weight)] = nn.Parameter(whole(weight).to("cpu", torch.float32, copy=True))
        elif shared:
            own[id(weight)] = weight
        elif weight.numel() == 0:  # a shard's placeholder; quantized weights have their own deepcopy
            own[id(weight)] = nn.Parameter(whole(weight).cpu(), requires_grad=False)
    twin: nn.Module = copy.deepcopy(student, own)
    return twin


class AdapterOff(InProcess):
    """``Teacher``: the student with its adapter disabled, which needs no extra memory.

    Args:
        student: returns the student as it is placed, with its wrapper.
        placement: where the models' weights are.
    """

    def __init__(self, student: Callable[[], Any], placement: Placement) -> None:
        self._student = student
        self._placement = placement

    @contextmanager
    def ready(self, device: torch.device) -> Iterator[Callable[[Texts], States]]:
        wrapped = self._student()
        model = self._placement.unwrap(wrapped)
        # DDP's wrapper would compare buffers with processes that have no rows for this teacher.
        through = wrapped if self._placement.divided else model
        with model.disable_adapter():
            yield lambda texts: self._placement.frozen_states(through, texts.sequence, "student")

    @torch.no_grad()
    def score(self, rollouts: Rollouts, student: States) -> list[Scored]:
        """As elsewhere, but within the student's own forward pass, whose wrapper has gathered the weights."""
        model = self._placement.unwrap(self._student())
        with model.disable_adapter(), evaluating(model):
            found = self._placement.states(model, "student", rollouts.sequence)
        return [Scored(found.to(student.head.device))]


class MovingAverage(TrainerCallback):
    """Makes a teacher the exponential moving average of the student's weights: m <- d m + (1 - d) w every step.

    The average is saved with every checkpoint, so that a resumed run continues with it.

    Args:
        teacher: returns the unwrapped teacher, a copy of the student.
        student: returns the unwrapped student.
        decay: d, in (0, 1); the average spans about 1 / (1 - d) steps.
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
        """Write the average into the folder of a checkpoint, on the process that writes it (`here`)."""
        weights = {name: whole(weight).cpu() for name, weight in self._weights(self._teacher()).items()}
        if here:
            save_file(weights, folder / AVERAGE_FILE)

    def load(self, checkpoint: str) -> None:
        """Load the average of a checkpoint.

        Raises:
            DataError: the checkpoint has none.
        """
        path = Path(checkpoint, AVERAGE_FILE)
        if not path.is_file():
            raise DataError(
                f"{path} is missing: this checkpoint comes from a run with another teacher than '{AVERAGE}'; resume "
                "with that teacher, or start a new run"
            )
        saved = load_file(path)
        with torch.no_grad():
            for name, average in self._weights(self._teacher()).items():
                average.copy_(divided_like(saved[name], average))

    def _weights(self, model: nn.Module) -> dict[str, Tensor]:
        weights = dict(model.named_parameters())
        return {name: weights[name] for name in self.names}

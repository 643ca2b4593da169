"""A local teacher: a forward pass in the training process, with the full distribution at every token."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from vopd.estimators.teacher_scores import EVERY_KIND, ScoreKind
from vopd.models import States
from vopd.placement import Placement

from .base import Rollouts, Scored, Teacher
from .texts import Texts


class InProcess(Teacher):
    """A teacher in the training process, which provides every kind of score."""

    gives: frozenset[ScoreKind] = EVERY_KIND

    @abstractmethod
    def ready(self, device: torch.device) -> AbstractContextManager[Callable[[Texts], States]]:
        """Context in which the model is on `device`: gives the function that computes the states of a batch."""

    def score(self, rollouts: Rollouts, student: States) -> list[Scored]:
        """The full distribution at every token of the micro-batch."""
        device = student.head.device
        with self.ready(device) as states:
            found = states(rollouts)
        return [Scored(found.to(device))]


class LocalTeacher(InProcess):
    """``Teacher`` for a model that ``Placement.place_frozen`` has prepared.

    Args:
        model: the prepared model.
        placement: where the models' weights are.
        offload: keep the model in host memory except while it scores; its head stays until the loss is computed.
    """

    def __init__(self, model: Any, placement: Placement, offload: bool = False) -> None:
        self.model = model
        self._placement = placement
        self._masters = Masters(model) if offload else None

    @contextmanager
    def ready(self, device: torch.device) -> Iterator[Callable[[Texts], States]]:
        with nullcontext() if self._masters is None else self._masters.lent_to(device):
            yield lambda texts: self._placement.frozen_states(self.model, texts.sequence)


class Masters:
    """Weights and buffers of a frozen model in host memory, copied to a device while it needs them.

    The weights do not change, so nothing is copied back: the copy is released, except for what the caller still holds.
    With a GPU the memory is pinned, so that the host does not wait for the copy.

    Args:
        model: the model, which is moved to the host.
    """

    def __init__(self, model: nn.Module) -> None:
        model.to("cpu")
        self._places = [
            (module, name, tensor)
            for module in model.modules()
            for named in (module.named_parameters, module.named_buffers)
            for name, tensor in named(recurse=False, remove_duplicate=False)
        ]
        if torch.cuda.is_available():
            for tensor in self._tensors():
                tensor.data = tensor.data.pin_memory()

    @contextmanager
    def lent_to(self, device: torch.device) -> Iterator[None]:
        """Context in which the model is on the device; tied weights stay tied."""
        copies = {id(master): _copied(master, device) for master in self._tensors()}
        try:
            for module, name, master in self._places:
                setattr(module, name, copies[id(master)])
            yield
        finally:
            self._places = [
                (module, name, _put_back(module, name, master, copies[id(master)]))
                for module, name, master in self._places
            ]

    def _tensors(self) -> list[Tensor]:
        return list({id(tensor): tensor for _, _, tensor in self._places}.values())


def _copied(master: Tensor, device: torch.device) -> Tensor:
    copy = master.detach().to(device, non_blocking=True)
    return nn.Parameter(copy, requires_grad=False) if isinstance(master, nn.Parameter) else copy


def _put_back(module: nn.Module, name: str, master: Tensor, copy: Tensor) -> Tensor:
    """Put the master back; a tensor that the forward pass replaced, such as a longer position table, becomes one."""
    now = getattr(module, name)
    kept: Tensor = master if now is copy or now is master else now.to("cpu")
    setattr(module, name, kept)
    return kept

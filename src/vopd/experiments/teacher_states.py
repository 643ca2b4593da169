"""Where a measurement takes the teacher's hidden states from: a model in this process, or a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vopd.models import States, layers_of, read_head
from vopd.teachers.server.questions import StatesQuestion
from vopd.teachers.server.settings import HIDDEN_STATES, ServerSettings
from vopd.teachers.server.teacher import ServerStates

from .rollouts import Rollout, pad

TeacherStates = Callable[[Sequence[Rollout]], States]
"""Gives the states that predict the completion tokens of rollouts, hidden (N, H), one rollout after another."""


@dataclass
class StatesServer(ServerSettings):
    """What ``check_server`` and ``connect`` read of a VOPDConfig, for a server that must give hidden states: a
    measurement needs the full distribution."""

    teacher_server_payload: str = HIDDEN_STATES
    teacher_offload: bool = False
    teacher_model_init_kwargs: None = None


def local_states(model: Any) -> TeacherStates:
    """The states of a model in this process, computed whenever they are asked for."""
    head = read_head(model, "teacher").detach()

    @torch.no_grad()
    def states(rollouts: Sequence[Rollout]) -> States:
        inputs, completion_mask = pad(rollouts, head.device)
        return States(predicting(model, inputs, completion_mask), head)

    return states


def served_states(teacher: ServerStates, device: torch.device) -> TeacherStates:
    """The states from a server, on `device`. It is asked once for each rollout: a measurement needs them many times."""
    head, width = teacher.head.to(device), teacher.head.weight.size(1)

    @cache
    def asked(ids: tuple[int, ...], start: int) -> Tensor:
        return teacher.model.states(StatesQuestion(ids, start, teacher.dtype, width))

    def states(rollouts: Sequence[Rollout]) -> States:
        found = [asked((*one.prompt_ids, *one.completion_ids), len(one.prompt_ids)) for one in rollouts]
        return States(torch.cat(found).to(device), head)

    return states


def predicting(model: Any, inputs: Mapping[str, Tensor], completion_mask: Tensor) -> Tensor:
    """A model's hidden states that predict the completion tokens of a batch from `pad`, (N, H)."""
    hidden: Tensor = layers_of(model)(**inputs, use_cache=False).last_hidden_state
    return hidden[:, :-1][completion_mask[:, 1:].bool()]

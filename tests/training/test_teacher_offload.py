"""A teacher that is on the host between its scorings."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from messages import says
from vopd.errors import ConfigurationError
from vopd.kernels import Head
from vopd.models import read_head
from vopd.teachers import Rollouts, States
from vopd.teachers.local import LocalTeacher, Masters

META = torch.device("meta")
"""Stands for a GPU: weights go there like anywhere, and since it keeps no values nothing can be copied back."""


def tied(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.lm_head.weight = model.model.embed_tokens.weight
    return model.requires_grad_(False)


def tensors(model: Any) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


class Looks:
    """Placement whose forward pass notes where the weights are, and returns the head as a real one does."""

    def __init__(self) -> None:
        self.seen: list[list[weakref.ref[torch.Tensor]]] = []

    def frozen_states(self, model: Any, sequence: Any) -> Any:
        assert all(tensor.device == META for tensor in tensors(model))
        assert model.lm_head.weight is model.model.embed_tokens.weight
        self.seen.append([weakref.ref(tensor) for tensor in tensors(model)])
        return States(torch.zeros(1, 3, 4, device=META), read_head(model, "teacher"))


def test_a_teacher_is_on_the_device_for_its_scoring_alone(tiny_teacher_dir: Path) -> None:
    """Of two that take turns one at a time is; the head stays until the loss is done."""
    placement = Looks()
    teachers = [LocalTeacher(tied(tiny_teacher_dir), placement, offload=True) for _ in range(2)]
    before = [[(tensor, tensor.data_ptr()) for tensor in tensors(teacher.model)] for teacher in teachers]
    ids = torch.zeros(1, 3, dtype=torch.long)
    student = States(torch.zeros(1, 3, 4), Head(torch.zeros(7, 4, device=META)))
    scored = [teacher.score(Rollouts(ids, ids, ids, ids, ids), student) for teacher in teachers]
    for teacher, masters, seen, (entry,) in zip(teachers, before, placement.seen, scored, strict=True):
        assert entry.by.head.weight.device == META
        assert [id(one()) for one in seen if one() is not None] == [id(entry.by.head.weight)]
        now = tensors(teacher.model)
        assert all(
            tensor is one and tensor.data_ptr() == place for tensor, (one, place) in zip(now, masters, strict=True)
        )


def test_the_host_does_not_wait_for_the_copy_and_makes_none_back(
    tiny_teacher_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: list[int] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:  # needs a GPU
        copy = tensor.clone()
        pinned.append(copy.data_ptr())
        return copy

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    model = tied(tiny_teacher_dir)
    masters = Masters(model)
    assert sorted(pinned) == sorted(tensor.data_ptr() for tensor in tensors(model))
    with Copies() as copies, pytest.raises(RuntimeError, match="out of memory"), masters.lent_to(META):
        raise RuntimeError("out of memory")
    assert copies.made == [(META, True)] * len(pinned)
    assert sorted(pinned) == sorted(tensor.data_ptr() for tensor in tensors(model))


class Copies(TorchDispatchMode):
    """Where tensors are copied to, and whether without waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_to_copy", "copy_", "clone"):
            self.made.append((kwargs.get("device"), kwargs.get("non_blocking")))
        return func(*args, **(kwargs or {}))


def test_where_the_host_computes_nothing_is_copied(tiny_teacher_dir: Path) -> None:
    model = tied(tiny_teacher_dir)
    masters, places = Masters(model), [tensor.data_ptr() for tensor in tensors(model)]
    with Copies() as copies, masters.lent_to(torch.device("cpu")):
        assert [tensor.data_ptr() for tensor in tensors(model)] == places
    assert not copies.made


def test_a_buffer_that_the_forward_pass_replaces_is_kept(tiny_teacher_dir: Path) -> None:
    """As the frequencies of dynamic positions, which are computed anew only where a sequence is longer than any yet."""
    model = tied(tiny_teacher_dir)
    masters, positions = Masters(model), model.model.rotary_emb
    longer = positions.inv_freq / 2
    with masters.lent_to(torch.device("cpu")):
        positions.register_buffer("inv_freq", longer, persistent=False)
    for _ in range(2):
        assert positions.inv_freq is longer
        with masters.lent_to(torch.device("cpu")):
            assert torch.equal(positions.inv_freq, longer)


def test_offloading_changes_nothing_and_does_not_go_with_few_bits(
    make_trainer: Callable[..., Any], take_step: Callable[..., Any], recorded_completions: Any, tiny_teacher_dir: Path
) -> None:
    plain, away = (
        take_step(make_trainer(teacher_offload=offload, max_steps=1), recorded_completions) for offload in (False, True)
    )
    assert all(torch.equal(plain[name], away[name]) for name in plain)
    teacher = tied(tiny_teacher_dir)
    teacher.quantization_method = "bitsandbytes"
    with pytest.raises(ConfigurationError, match=says("teacher_offload ... quantized teacher")):
        make_trainer(teacher_offload=True, trainer={"teacher_model": teacher})

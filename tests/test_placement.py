"""What reading a model must not do to it. What launchers do to it is tested in tests/launchers."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vopd.placement import Placement, loaded_apart


def test_a_compiled_model_keeps_the_ddp_around_it(fresh_accelerate: None) -> None:
    """accelerate would put the bare model in its place, and every process would go on with gradients of its own."""
    from accelerate import Accelerator

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        bare = nn.Linear(2, 2)
        around = nn.parallel.DistributedDataParallel(bare)
        compiled = torch.compile(around, backend="eager")
        placement = Placement(Accelerator(cpu=True), lambda *given: None, None)
        assert placement.unwrap(compiled) is bare and compiled._orig_mod is around
    finally:
        torch.distributed.destroy_process_group()


def test_a_model_for_one_process_alone_is_loaded_as_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import deepspeed

    config = SimpleNamespace(is_zero3=lambda: True)
    monkeypatch.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", lambda: config)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(KeyError), loaded_apart():
        assert not deepspeed.is_deepspeed_zero3_enabled() and "ACCELERATE_USE_FSDP" not in os.environ
        raise KeyError
    assert deepspeed.is_deepspeed_zero3_enabled() and os.environ["ACCELERATE_USE_FSDP"] == "true"

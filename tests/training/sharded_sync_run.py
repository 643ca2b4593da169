"""One rank of two whose student is sharded and sent to vLLM: sharded_sync_run.py STUDENT (test_weight_sync.py)."""

from __future__ import annotations

import sys
from typing import Any

import peft
import torch
from accelerate import Accelerator
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from vopd.run.exit_codes import leave
from vopd.training.trl import _Engine


def made(path: str, settings: dict[str, Any] | None) -> Any:
    """The same student on every rank, in bf16, its adapters included: FSDP wants one dtype a layer."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    if settings is None:
        return model
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, **settings)
    return peft.get_peft_model(model, config, autocast_adapter_dtype=False).to(torch.bfloat16)


def shard(base: Any) -> None:
    """As accelerate does: each layer, and the last norm and the head as one that stays whole after a forward."""
    for layer in base.model.layers:
        fully_shard(layer)
    fully_shard(base.model.embed_tokens)
    fully_shard([base.model.norm, base.lm_head], reshard_after_forward=False)
    fully_shard(base, reshard_after_forward=True)


def check(engine: Any, path: str, settings: dict[str, Any] | None) -> None:
    model = engine.model = made(path, settings)
    base = model if settings is None else model.get_base_model()
    expected = {name: weight.clone() for name, weight in engine._iter_named_params()}
    shard(base)
    before = {name: weight.to_local().clone() for name, weight in model.named_parameters()}
    for evaluated in (False, True):
        if evaluated:  # without a backward pass, after which the head is sharded again
            with torch.no_grad():
                model(torch.tensor([[4, 5, 6]]))
            assert any(not isinstance(weight, DTensor) for weight in model.parameters())
        sent = dict(engine._iter_named_params())
        assert list(sent) == list(expected)
        for name, weight in sent.items():
            assert not isinstance(weight, DTensor) and not weight.requires_grad, name
            assert torch.equal(weight, expected[name]), name
    base.lm_head.reshard()
    for name, weight in model.named_parameters():
        assert torch.equal(weight.to_local(), before[name]), name


def made_engine() -> Any:
    """The engine of a trainer without vLLM in it."""
    engine = object.__new__(_Engine)
    engine.accelerator = Accelerator(cpu=True)
    return engine


if __name__ == "__main__":
    torch.set_num_threads(1)
    for settings in (None, {}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}):
        check(made_engine(), sys.argv[1], settings)
    leave(0)

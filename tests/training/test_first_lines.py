"""A run says first of all what it runs on: processes, device, precision, and the models in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn

from messages import told
from vopd.models import load_model
from vopd.placement import described

CPU = torch.device("cpu")


def size(folder: Path) -> int:
    return sum(weight.numel() for weight in load_model(folder).parameters())


def test_processes_device_and_parameters_come_before_the_first_step(
    make_trainer: Callable[..., Any], capsys: pytest.CaptureFixture[str], tiny_student_dir: Path, tiny_teacher_dir: Path
) -> None:
    rows = {"prompt": [f"{n} + 1 =" for n in range(4)], "teacher": ["math", "again", "own", "math"]}
    rows["hint"] = rows["prompt"]
    from datasets import Dataset

    teacher = str(tiny_teacher_dir)
    named = {"teacher_model": None, "teachers": {"math": teacher, "again": teacher, "own": "self:base"}}
    own = {"teacher_prompt_column": "hint"}
    adapters = LoraConfig(r=2, target_modules=["q_proj"])
    make_trainer(trainer={"train_dataset": Dataset.from_dict(rows), "peft_config": adapters, **named}, **own).train()
    lines = capsys.readouterr().err.splitlines()
    processes, parameters, loss, step, *_ = lines[next(n for n, line in enumerate(lines) if "processes" in line) :]
    assert step.startswith("step 1/2") and processes == "processes: 1, no mixed precision, on cpu"
    trained = 2 * 2 * (32 + 32)  # rank 2, width 32 to 2 heads of 16, in two layers
    whole, other = size(tiny_student_dir) + trained, size(tiny_teacher_dir)
    assert told(f"student {whole:,} in float32 ... {trained} trained ... teacher math {other:,}", parameters)
    assert "again" not in parameters and "own" not in parameters  # the same weights
    assert loss == "loss: vopd, torch on cpu"


def test_sizes_dtypes_and_places() -> None:
    layer = nn.Linear(1000, 1500, bias=False, dtype=torch.bfloat16)
    assert described(layer, CPU) == "1.50 million in bfloat16, all trained"
    assert described(layer, CPU, processes=2) == "1.50 million in bfloat16, all trained, full copy on every process"
    mixed = nn.Sequential(layer.requires_grad_(False), nn.Linear(10, 1, bias=False))
    assert described(mixed, CPU) == "1.50 million in bfloat16 and float32, 10 trained"
    elsewhere = nn.Linear(40_000, 50_000, bias=False, device="meta").requires_grad_(False)
    assert described(elsewhere, CPU) == "2.00 billion in float32, on meta"


def test_weights_that_are_cut_up_or_packed_count_whole() -> None:
    """As DeepSpeed's ZeRO-3 and bitsandbytes mark theirs, which do not run here; distributed_run.py has FSDP2."""
    model = nn.Linear(1, 1, bias=False)
    model.weight = nn.Parameter(torch.empty(0))
    model.weight.ds_numel = 12
    assert described(model, CPU, processes=2) == "12 in float32, all trained, sharded over the processes"
    packed = nn.Parameter(torch.zeros(6, 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = SimpleNamespace(shape=torch.Size([3, 4]))
    model.weight = packed
    assert described(model, CPU) == "12 in uint8"

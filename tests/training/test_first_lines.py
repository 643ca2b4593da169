"""The block of lines that a run begins with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn

from messages import told
from vopd.kernels import Head
from vopd.models import load_model
from vopd.placement import described
from vopd.teachers.build import Served
from vopd.training import VOPDConfig
from vopd.training.monitoring.first_lines import Gives, Start, first_lines

CPU = torch.device("cpu")


def size(folder: Path) -> int:
    return sum(weight.numel() for weight in load_model(folder).parameters())


def rows(lines: list[str]) -> dict[str, str]:
    """The block of first lines by the names of its rows, which are aligned."""
    width = lines[0].index("cpu")
    return {line[:width].strip(): line[width:] for line in lines}


def test_a_run_in_python_begins_with_what_it_is_going_to_do(
    make_trainer: Callable[..., Any], capsys: pytest.CaptureFixture[str], tiny_student_dir: Path, tiny_teacher_dir: Path
) -> None:
    data = {
        "prompt": [f"{n} + 1 =" for n in range(4)] + ["long " * 9],
        "teacher": ["math", "again", "own", "math", "own"],
    }
    data["hint"] = data["prompt"]
    from datasets import Dataset

    teacher = str(tiny_teacher_dir)
    named = {"teacher_model": None, "teachers": {"math": teacher, "again": teacher, "own": "self:base"}}
    own = {"teacher_prompt_column": "hint", "max_prompt_length": 30, "guard_stop": ["length"], "num_train_epochs": 1}
    adapters = LoraConfig(r=2, target_modules=["q_proj"])
    make_trainer(trainer={"train_dataset": Dataset.from_dict(data), "peft_config": adapters, **named}, **own).train()
    lines = capsys.readouterr().err.splitlines()
    begin = next(n for n, line in enumerate(lines) if line.startswith("device"))
    end = next(n for n, line in enumerate(lines) if line.startswith("step 1/2"))
    found = rows(lines[begin:end])
    trained = 2 * 2 * (32 + 32)  # rank 2, width 32 to 2 heads of 16, in two layers
    whole = size(tiny_student_dir) + trained
    assert found["device"] == "cpu, 1 process, no mixed precision"
    share = f"{trained} ({trained / whole:.2%}) trained"
    assert found["student"] == f"{tiny_student_dir}, parameters: {whole:,} in float32, {share}"
    assert found["teacher math"] == f"{teacher}, parameters: {size(tiny_teacher_dir):,} in float32"
    assert told("self:base ... without its adapter", found["teacher own"]) and "parameters" not in found["teacher own"]
    assert told("4 ... 1 more dropped ... max_prompt_length=30", found["prompts"])
    assert told("2 prompts ... 8 tokens", found["each step"])
    assert told("2 ... 2 per epoch ... 16 tokens", found["steps"])
    assert found["loss"] == "vopd, torch on cpu" and "rewards" not in found
    assert told("length can stop ... 4 warn", found["guards"])
    assert found["watch it"] == f"vopd report {found['run folder']} --watch"


def test_teachers_engines_and_plurals(tmp_path: Path) -> None:
    sources = {"near": Served("http://me:secret@host:8000/v1"), "far": Served(["http://a", "http://b"], "its/folder")}
    sources |= {"whole": Served("http://c", "its/folder"), "asked": Served("http://d", "its/folder")}
    sources |= {"old": "self:average", "frozen": "self:frozen"}
    head = Head(torch.empty(300, 4000, dtype=torch.bfloat16, device="meta"))
    gives = {"near": Gives(), "far": Gives(), "whole": Gives("hidden_states", head), "asked": Gives("auto", head)}
    config = VOPDConfig(
        str(tmp_path), use_cpu=True, per_device_train_batch_size=2, gradient_accumulation_steps=2, num_generations=4,
        max_completion_length=1_000_000, teacher_decay=0.9, estimator="vopd_top_k", loss_top_k=5,
    )  # fmt: skip
    placement: Any = SimpleNamespace(
        accelerator=SimpleNamespace(num_processes=1, mixed_precision="bf16", device=CPU), managed=False
    )
    facts = Start(
        placement, "a", "1 in float32", sources, {}, gives, "torch", "math (weight 1)", 1234, 0, steps=9, done=4
    )
    found = rows(first_lines(config, facts))
    assert found["device"] == "cpu, 1 process, bf16 mixed precision"
    assert found["teacher near"] == "server at http://host:8000/v1, scores"
    assert found["teacher far"] == "server at http://a, http://b, scores, tokenizer of its/folder"
    whole = "hidden states (bfloat16), output head of its/folder here: 300 x 4,000 in bfloat16, 2.3 MiB"
    assert found["teacher whole"] == f"server at http://c, {whole}"
    assert told(f"http://d, {whole}; or scores ... asked", found["teacher asked"])
    assert told("self:average ... decay 0.9", found["teacher old"]) and "before" in found["teacher frozen"]
    assert found["prompts"] == "1,234"
    assert told("1 prompt x 4 completions ... 4.0 million tokens ... 2 x 2", found["each step"])
    assert told("9 ... 1,234 per epoch ... step 4 ... 36.0 million", found["steps"])
    assert told("vopd_top_k ... loss_top_k=5", found["loss"]) and found["rewards"] == "math (weight 1)"
    assert told("none stops ... 6 warn", found["guards"]) and "transformers" in found["rollouts"]
    config.estimator = "vopd_sparse"  # of a local teacher's scores too few to compare the distributions
    local = replace(facts, teachers={"default": "a"}, teachers_give={})
    states = replace(facts, teachers={"whole": sources["whole"]}, teachers_give={"whole": gives["whole"]})
    assert told("4 warn", rows(first_lines(config, local))["guards"])
    assert told("4 warn", rows(first_lines(config, states))["guards"])  # of a whole row only a few entries are read
    assert told("6 warn", rows(first_lines(config, facts))["guards"])
    config.teacher_offload, config.teacher_server_dtype = True, "float32"
    assert told("(float32) ... on the host between losses: 300 x", rows(first_lines(config, states))["teacher whole"])
    config.use_vllm, config.vllm_mode = True, "server"  # as if vLLM were here
    config.vllm_server_base_url = "https://key@rollouts:1"
    found = rows(first_lines(config, facts))
    assert found["rollouts"] == "vLLM server at https://rollouts:1"
    assert told("logprobs_stop can stop", found["guards"])
    config.vllm_mode, config.vllm_gpu_memory_utilization = "colocate", 0.3
    assert told("vLLM ... training process ... 30%", rows(first_lines(config, facts))["rollouts"])


def test_sizes_dtypes_and_places() -> None:
    layer = nn.Linear(1000, 1500, bias=False, dtype=torch.bfloat16)
    assert described(layer, CPU) == "1.50 million in bfloat16, all trained"
    assert described(layer, CPU, processes=2) == "1.50 million in bfloat16, all trained, full copy on every process"
    mixed = nn.Sequential(layer.requires_grad_(False), nn.Linear(10, 1, bias=False))
    assert described(mixed, CPU) == "1.50 million in bfloat16 and float32, 10 (0.00%) trained"
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

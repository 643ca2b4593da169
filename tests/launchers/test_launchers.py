"""DDP, FSDP2 and DeepSpeed on two processes: every case; and every file of configs/accelerate, from start to resume.

Minutes, and DeepSpeed is not among the requirements: `make test-launchers`.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from launchers.agreement import Found, alone, cases, check, check_saved, launched, save_models
from launchers.ranks import Case
from launchers.starting import HERE, command, environment
from training.two_processes import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed: make test-launchers"),
]

LAUNCHERS = {
    "ddp": ("ddp",),
    "fsdp2": ("fsdp2",),
    "fsdp2, weights wrapped by size": ("fsdp2", "--fsdp_auto_wrap_policy", "SIZE_BASED_WRAP", "--fsdp_min_num_params", "500"),
    "ZeRO-2": ("deepspeed_zero2",),
    "ZeRO-3": ("deepspeed_zero3",),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("launchers")


@pytest.fixture(scope="module")
def known(folder: Path, tiny_tokenizer: Any) -> dict[str, Case]:
    return cases(save_models(folder, tiny_tokenizer))


@pytest.fixture(scope="module")
def one(known: dict[str, Case], folder: Path) -> dict[str, Found]:
    """All cases but those in bf16, in this process."""
    return alone([case for case in known.values() if not case.bf16], folder / "one")


@pytest.fixture(scope="module")
def whole(known: dict[str, Case], folder: Path) -> dict[str, Found]:
    """The cases in bf16, by DDP."""
    return launched("ddp", [case for case in known.values() if case.bf16], folder / "whole")


@pytest.mark.parametrize("name", LAUNCHERS)
def test_two_processes_train_what_one_trains(
    name: str, known: dict[str, Case], one: dict[str, Found], folder: Path
) -> None:
    chosen = [case for case in known.values() if not case.bf16]
    if name.startswith("ZeRO"):
        chosen = [case for case in chosen if case.name != "average self"]
    config, *options = LAUNCHERS[name]
    two = launched(config, chosen, folder / name, *options)
    for case in chosen:
        check(case, one[case.name], two[case.name])
        check_saved(case, folder / "one", folder / name)
        assert name != "ZeRO-3" or two[case.name]["elements"] == 0  # or nothing was divided


@pytest.mark.parametrize("config", ["fsdp2", "deepspeed_zero2", "deepspeed_zero3"])
def test_bf16(config: str, known: dict[str, Case], whole: dict[str, Found], folder: Path) -> None:
    chosen = [case for case in known.values() if case.bf16]
    parts = launched(config, chosen, folder / f"{config} bf16")
    for case in chosen:
        check(case, whole[case.name], parts[case.name])

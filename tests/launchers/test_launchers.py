"""DDP, FSDP2 and DeepSpeed on two processes: every case; and every file of configs/accelerate, from start to resume.

Minutes, and DeepSpeed is not among the requirements: `make test-launchers`.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from launchers.agreement import (
    Found,
    alone,
    cases,
    check,
    check_metrics,
    check_saved,
    check_spoilt,
    launched,
    save_models,
)
from launchers.ranks import Case
from launchers.starting import HERE, command, environment, start
from teachers.stub_server import StubServer
from training.two_processes import free_port
from vopd.models import load_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed: make test-launchers"),
]

SHARDING = ("fsdp2", "deepspeed_zero2", "deepspeed_zero3")
ON_A_CPU = str(HERE / "on_a_cpu.py")
PROGRAMS = {
    "ddp": ("-m", "vopd"),
    "fsdp2": (ON_A_CPU,),
    "deepspeed_zero2": ("-m", "vopd"),
    "deepspeed_zero3": ("-m", "vopd"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("launchers")


@pytest.fixture(scope="module")
def models(folder: Path, tiny_tokenizer: Any) -> dict[str, str]:
    return save_models(folder, tiny_tokenizer)


@pytest.fixture(scope="module")
def server(models: dict[str, str], tiny_tokenizer: Any) -> Iterator[str]:
    """The address of a server of the teacher's hidden states."""
    stub = StubServer(load_model(models["teacher"]), tiny_tokenizer, pools="token_embed")
    yield stub.url
    stub.close()


@pytest.fixture(scope="module")
def known(models: dict[str, str], server: str) -> dict[str, Case]:
    return cases(models, server)


@pytest.fixture(scope="module")
def one(known: dict[str, Case], folder: Path) -> dict[str, Found]:
    """All cases, in this process."""
    return alone([case for case in known.values() if not case.poisoned], folder / "one")


@pytest.mark.parametrize("config", ["ddp", *SHARDING])
def test_two_processes_train_what_one_trains(
    config: str, known: dict[str, Case], one: dict[str, Found], folder: Path
) -> None:
    chosen = [case for case in known.values() if not case.bf16 and not case.poisoned]
    if config.startswith("deepspeed"):
        chosen = [case for case in chosen if case.name != "average self"]  # which is refused
    two = launched(config, [*chosen, known["poisoned"]], folder / config)
    check_spoilt(two["poisoned"], config)
    for case in chosen:
        check(case, one[case.name], two[case.name])
        check_saved(case, folder / "one", folder / config)
        check_metrics(case, folder / "one", folder / config)
        assert config != "deepspeed_zero3" or two[case.name]["elements"] == 0  # or nothing was divided


@pytest.mark.parametrize("config", ["ddp", *SHARDING])
def test_bf16(config: str, known: dict[str, Case], one: dict[str, Found], folder: Path) -> None:
    chosen = [case for case in known.values() if case.bf16]
    parts = launched(config, chosen, folder / f"{config} bf16")
    for case in chosen:
        # ZeRO-3 adds micro-batches in bf16 after it has added the processes; one of LoRA's matrices is 1.1e-2 away.
        check(case, one[case.name], parts[case.name], bf16=1.5e-2 if config == "deepspeed_zero3" else 1e-2)


# ---- the files as they are ------------------------------------------------------------------------------------------


def train(model: str, teacher: str, folder: Path) -> list[str]:
    """Options of a run of two steps, by `vopd train`."""
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"problem": f"{n} + 3 ="}) + "\n" for n in range(16)))
    return [
        "train", "--model", model, "--teacher_model", teacher, "--dataset", str(prompts),
        "--output_dir", str(folder / "runs"), "--run_name", "run", "--max_completion_length", "4",
        "--per_device_train_batch_size", "2", "--max_steps", "2", "--save_steps", "1", "--use_cpu", "true",
        "--bf16", "true",  # as on a GPU
        "--eval_benchmarks", "reasoning_gym:chain_sum", "--eval_benchmark_steps", "1", "--eval_benchmark_limit", "5",
        "--eval_benchmark_samples", "2", "--eval_task", "reasoning_gym:chain_sum", "--eval_count", "4",
    ]  # fmt: skip


def check_run(folder: Path, start: Callable[[list[str]], str], models: dict[str, str]) -> None:
    """Two steps and a model, and the same model again when the second step is taken anew."""
    options = train(models["untied"], models["teacher"], folder)
    run = folder / "runs" / "run"
    start(options)
    assert json.loads((run / "results.json").read_text())["trained"]
    first = load_file(run / "model" / "model.safetensors")
    assert all(value.isfinite().all() for value in first.values())
    shutil.rmtree(run / "checkpoint-2")
    shutil.rmtree(run / "model")
    said = start([*options, "--resume"])
    assert "resuming from" in said and "checkpoint-1" in said
    again = load_file(run / "model" / "model.safetensors")
    assert first.keys() == again.keys() and all(torch.equal(again[name], value) for name, value in first.items())
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if "loss" in record]
    assert steps == [1, 2] and any("eval_chain_sum_avg@2" in record for record in records)


@pytest.mark.parametrize("config", PROGRAMS)
def test_a_file_as_it_is(config: str, models: dict[str, str], tmp_path: Path) -> None:
    """But for the number of processes: in bf16, with rollouts by the student itself."""
    check_run(tmp_path, lambda options: start(config, *PROGRAMS[config], *options, folder=tmp_path), models)


def test_more_processes_go_on(models: dict[str, str], tmp_path: Path) -> None:
    """Four from the checkpoint of two, with as many prompts in a step."""
    options = train(models["untied"], models["teacher"], tmp_path)
    start("fsdp2", ON_A_CPU, *options, folder=tmp_path)
    run = tmp_path / "runs" / "run"
    shutil.rmtree(run / "checkpoint-2")
    halved = [*options, "--resume", "--per_device_train_batch_size", "1"]
    said = start("fsdp2", "--num_processes", "4", ON_A_CPU, *halved, folder=tmp_path)
    assert "checkpoint-1" in said and "4 processes (FSDP2" in said, said[-3000:]
    assert json.loads((run / "checkpoint-2" / "manifest.json").read_text())["origin"]["processes"] == 4


def test_two_machines(models: dict[str, str], tmp_path: Path) -> None:
    """That are one, with a launcher for each."""

    def start_both(options: list[str]) -> str:
        port = free_port()
        started = []
        for rank in range(2):
            machine = ["--machine_rank", str(rank), "--main_process_ip", "127.0.0.1", ON_A_CPU, *options]
            line = command("multi_node", *machine, port=port)
            started.append(
                subprocess.Popen(
                    line, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path
                )
            )
        said = [process.communicate(timeout=600)[0] for process in started]
        assert [process.returncode for process in started] == [0, 0], "".join(said)[-6000:]
        return said[0]

    check_run(tmp_path, start_both, models)

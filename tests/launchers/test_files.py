"""The files in configs/accelerate: what processes they start and what those are told; DDP is really run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launchers.agreement import alone, cases, check, check_saved, launched, save_models
from launchers.starting import CONFIGS, start
from messages import says, told
from vopd.errors import ConfigurationError
from vopd.placement import Placement
from vopd.teachers.itself import check_self


def launch(name: str) -> tuple[Any, dict[str, str]]:
    """The arguments of `accelerate launch` with this file, and the environment that its processes would get."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    line = ["--config_file", str(CONFIGS / f"{name}.yaml"), "-m", "vopd", "train"]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(line))
    if not args.use_deepspeed:
        return args, prepare_multi_gpu_env(args)
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    return args, prepare_deepspeed_cmd_env(args)[1]


def launcher(**plugins: Any) -> str:
    """What a run under these plugins of accelerate calls its launcher."""
    state = SimpleNamespace(**plugins)
    return Placement(SimpleNamespace(state=state, num_processes=2), print, None).launcher


@pytest.mark.parametrize(
    ("name", "processes", "machines"),
    [("ddp", 8, 1), ("fsdp2", 8, 1), ("deepspeed_zero2", 8, 1), ("deepspeed_zero3", 8, 1), ("multi_node", 16, 2)],
)
def test_processes_and_precision(name: str, processes: int, machines: int) -> None:
    args, environment = launch(name)
    assert (args.num_processes, args.num_machines) == (processes, machines)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert args.use_fsdp == (name in ("fsdp2", "multi_node")) and args.use_deepspeed == name.startswith("deepspeed")


@pytest.mark.parametrize("name", ["fsdp2", "multi_node"])
def test_fsdp_is_version_two_and_saves_whole_checkpoints(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the plugin that accelerate makes from the environment of a process."""
    from accelerate.utils import FullyShardedDataParallelPlugin

    for variable, value in launch(name)[1].items():
        if variable.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(variable, value)
    plugin = FullyShardedDataParallelPlugin()
    assert launcher(fsdp_plugin=plugin) == "FSDP2"
    plugin.set_state_dict_type("SHARDED_STATE_DICT")
    assert launcher(fsdp_plugin=plugin) == "FSDP2 with SHARDED_STATE_DICT"
    plugin.set_state_dict_type("FULL_STATE_DICT")
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
    assert not plugin.cpu_ram_efficient_loading and "OffloadPolicy()" in str(plugin.cpu_offload)


def test_fsdp_of_version_one_is_refused() -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin

    with pytest.raises(ConfigurationError, match=says("version 1 ... fsdp_version: 2")):
        launcher(fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=1))


def test_an_average_that_deepspeed_would_round_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=says("'self:average' ... DeepSpeed ... FSDP2 or DDP")):
        check_self("self:average", adapters=False, in_an_engine=True)
    check_self("self:average", adapters=False, in_an_engine=False)
    check_self("self:frozen", adapters=False, in_an_engine=True)


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_stages(stage: int) -> None:
    _, environment = launch(f"deepspeed_zero{stage}")
    assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == str(stage)
    # Under ZeRO-3 weights are cut up while they are loaded, whatever this says.
    assert environment.get("ACCELERATE_DEEPSPEED_ZERO3_INIT", "false") == str(stage == 3).lower()
    assert launcher(deepspeed_plugin=SimpleNamespace(zero_stage=stage)) == f"DeepSpeed ZeRO-{stage}"
    if stage == 3:  # or else a checkpoint holds no weights that can be loaded
        assert environment["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"


@pytest.mark.slow
def test_ddp_trains_with_gloo_on_two_processes(tiny_student_dir: Path, tiny_teacher_dir: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"problem": f"{n} + 3 ="}) + "\n" for n in range(16)))
    said = start(  # without --cpu, with which accelerate starts one process
        "ddp", "--mixed_precision", "no", "-m", "vopd", "train", "--model", str(tiny_student_dir),
        "--teacher_model", str(tiny_teacher_dir), "--dataset", str(prompts), "--output_dir", str(tmp_path / "runs"),
        "--run_name", "ddp", "--max_completion_length", "4", "--per_device_train_batch_size", "2", "--max_steps", "2",
        "--use_cpu", "true", "--save_steps", "1", folder=tmp_path,
    )  # fmt: skip
    (first,) = (line for line in said.splitlines() if line.startswith("device "))  # of one process alone
    assert first.split(maxsplit=1)[1] == "cpu, 2 processes (DDP), no mixed precision"
    assert told("student ... all trained ... on every process", said) and told("teacher ... on every process", said)
    run = tmp_path / "runs" / "ddp"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2]
    assert (run / "model" / "model.safetensors").is_file()
    # A state of the random generators for each process, all named by the manifest.
    manifest = json.loads((run / "checkpoint-2" / "manifest.json").read_text())
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(manifest["files"])
    assert manifest["origin"] == {"processes": 2, "launcher": "DDP", "step_prompts": 4}


@pytest.mark.slow
def test_ddp_averages_the_gradients_of_compiled_models(tiny_tokenizer: Any, tmp_path: Path) -> None:
    case = cases(save_models(tmp_path, tiny_tokenizer))["own head"]
    one = alone([case], tmp_path / "one")
    compiled = replace(case, options={"torch_compile": True, "torch_compile_backend": "eager"})
    two = launched("ddp", [compiled], tmp_path / "two")
    check(case, one[case.name], two[case.name])
    check_saved(case, tmp_path / "one", tmp_path / "two")

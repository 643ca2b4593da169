"""Processes that a launcher started and that do not train together are told of it, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from messages import says, told
from vopd import VOPDConfig
from vopd.errors import ConfigurationError
from vopd.processes import check_alone, check_together, remark


@pytest.mark.parametrize(
    ("together", "environment", "named"),
    [
        (1, {}, None),
        (1, {"WORLD_SIZE": "1", "RANK": "0"}, None),  # what a launcher, or vLLM beside the trainer, leaves behind
        (1, {"WORLD_SIZE": "2", "RANK": "1"}, "WORLD_SIZE"),
        (2, {"WORLD_SIZE": "2"}, None),
        (2, {"WORLD_SIZE": "4"}, "WORLD_SIZE"),
        (1, {"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE"),
        (1, {"PMI_SIZE": "2"}, "PMI_SIZE"),
        (1, {"MV2_COMM_WORLD_SIZE": "2"}, "MV2_COMM_WORLD_SIZE"),
        (1, {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2"}, "SLURM_STEP_NUM_TASKS"),
        # The script of a job and a shell in an allocation of several tasks: they are one process.
        (1, {"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, None),
        (1, {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "1"}, None),
        # srun starts a launcher on each machine, and the launcher more processes.
        (16, {"SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "16"}, None),
        (1, {"WORLD_SIZE": ""}, None),
        (1, {"WORLD_SIZE": "many"}, None),
    ],
)
def test_who_is_alone(together: int, environment: dict[str, str], named: str | None) -> None:
    if named is None:
        check_together(together, environment)
        return
    facts = f"{named}={environment[named]} ... training sees {together} ... unset {named}"
    with pytest.raises(ConfigurationError, match=says(facts)):
        check_together(together, environment)


def test_a_command_of_one_process_is_not_started_twice() -> None:
    check_alone("eval", {"WORLD_SIZE": "1"})
    with pytest.raises(ConfigurationError, match=says("vopd eval ... one process ... PMI_SIZE=2 ... unset PMI_SIZE")):
        check_alone("eval", {"PMI_SIZE": "2"})


@pytest.mark.parametrize("command", ["demo", "eval", "merge", "variance", "compare"])
def test_commands_of_one_process(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vopd import cli

    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main([command]) == ConfigurationError.exit_code
    assert told(f"vopd {command} ... WORLD_SIZE=2", capsys.readouterr().err)


def test_what_accelerate_does_without_a_word_is_remarked() -> None:
    alone = {"ACCELERATE_USE_CPU": "True"}
    assert told("--cpu starts one ... --num_processes ... torchrun", remark(1, alone))
    assert remark(2, alone) == remark(1, {"ACCELERATE_USE_CPU": "False"}) == remark(1, {}) == ""


def test_a_launcher_whose_processes_are_not_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """accelerate sees one process where two were started without use_cpu and there is no GPU."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match=says("WORLD_SIZE=2 ... training sees 1 ... use_cpu=true")):
        VOPDConfig(output_dir=str(tmp_path))


def test_srun_without_a_launcher_is_told_before_models_are_looked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from vopd import cli

    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    line = ["train", "--model", "none", "--teacher_model", "none", "--dataset", "none", "--output_dir", str(tmp_path)]
    assert cli.main([*line, "--use_cpu", "true"]) == ConfigurationError.exit_code
    assert told("SLURM_STEP_NUM_TASKS=4 ... training sees 1 ... torchrun", capsys.readouterr().err)
    assert not any(tmp_path.iterdir())

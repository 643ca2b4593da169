"""Whether all processes that a launcher started work together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from vopd.errors import ConfigurationError

# Variables in which launchers pass the number of processes that they started. SLURM_NTASKS is left out because a job's
# script and a shell in an allocation have it too, with one process; SLURM_STEP_NUM_TASKS is what one srun started.
_STARTED = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


def check_together(together: int, environment: Mapping[str, str]) -> None:
    """Raise ConfigurationError if, by the `environment`, more processes were started than train `together`."""
    for name in _more_than(together, environment):
        raise ConfigurationError(
            f"{name}={environment[name]} processes were started, but training sees {together}: each would do the whole "
            "run and write to the same folder; start them with accelerate launch or torchrun (on CPUs with "
            f"use_cpu=true), or unset {name} if this process trains alone"
        )


def check_alone(command: str, environment: Mapping[str, str]) -> None:
    """Raise ConfigurationError if several processes were started for a command that works in one."""
    for name in _more_than(1, environment):
        raise ConfigurationError(
            f"vopd {command} works in one process, but {name}={environment[name]} were started, which would all write "
            f"to one folder; start it without a launcher, or unset {name}"
        )


def check_launched(args: Any) -> None:
    """Raise ConfigurationError if a backend connects processes that no launcher started."""
    if args.ddp_backend and not any(name in os.environ for name in _STARTED):
        raise ConfigurationError(
            f"ddp_backend={args.ddp_backend} connects several processes, but this is one; start them with accelerate "
            "launch or torchrun, or remove it"
        )


def remark(together: int, environment: Mapping[str, str]) -> str:
    """What to know of the number of processes; empty if it is what was asked for, as far as the `environment` tells."""
    if together == 1 and environment.get("ACCELERATE_USE_CPU", "").lower() == "true":
        return "accelerate launch --cpu starts one whatever --num_processes says; torchrun --nproc_per_node N starts N"
    return ""


def _more_than(together: int, environment: Mapping[str, str]) -> list[str]:
    """The variables that tell of more processes."""
    return [name for name in _STARTED if (n := environment.get(name, "")).isdecimal() and int(n) > together]

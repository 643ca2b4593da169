"""Whether all processes that were started train together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from vopd.errors import ConfigurationError

# In each of them a launcher tells its processes how many it started. SLURM_NTASKS is none of them: a job's script and a
# shell in an allocation have it too, with one process; SLURM_STEP_NUM_TASKS is the number that one srun started.
_STARTED = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


def check_processes(args: Any) -> None:
    """Raises ConfigurationError where a launcher started more processes than train together under these arguments."""
    # accelerate may let processes talk and still combine nothing, as under ddp_backend=gloo without use_cpu.
    together = args.world_size if args.parallel_mode.value == "distributed" else 1
    problem = alone(together, os.environ)
    if problem is not None:
        raise ConfigurationError(problem)


def alone(together: int, environment: Mapping[str, str]) -> str | None:
    """What is wrong, by what the `environment` says, where so many processes train `together`; None if nothing is."""
    for name in _STARTED:
        started = environment.get(name, "")
        if started.isdecimal() and int(started) > together:
            return (
                f"{name}={started} processes were started, but training sees {together}, and each would train the "
                "whole run into the same folder; start them with accelerate launch or torchrun (on CPUs with "
                f"use_cpu=true), or unset {name} if this process is the only one that trains"
            )
    return None

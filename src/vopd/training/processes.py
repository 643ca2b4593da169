"""Check that all processes that a launcher started train together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from vopd.errors import ConfigurationError

# Variables in which launchers pass the number of processes that they started. SLURM_NTASKS is left out because a job's
# script and a shell in an allocation have it too, with one process; SLURM_STEP_NUM_TASKS is what one srun started.
_STARTED = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


def check_processes(args: Any) -> None:
    """Raises ConfigurationError if a launcher started more processes than train together with these arguments."""
    # accelerate may connect processes and still combine nothing, as with ddp_backend=gloo without use_cpu.
    together = args.world_size if args.parallel_mode.value == "distributed" else 1
    problem = alone(together, os.environ)
    if problem is not None:
        raise ConfigurationError(problem)


def check_launched(args: Any) -> None:
    """Raises ConfigurationError if a backend connects processes that no launcher started."""
    if args.ddp_backend and not any(name in os.environ for name in _STARTED):
        raise ConfigurationError(
            f"ddp_backend={args.ddp_backend} connects several processes, but this is one; start them with accelerate "
            "launch or torchrun, or remove it"
        )


def alone(together: int, environment: Mapping[str, str]) -> str | None:
    """What is wrong, according to the `environment`, if so many processes train `together`; None if nothing is."""
    for name in _STARTED:
        started = environment.get(name, "")
        if started.isdecimal() and int(started) > together:
            return (
                f"{name}={started} processes were started, but training sees {together}: each would do the whole run "
                "and write to the same folder; start them with accelerate launch or torchrun (on CPUs with "
                f"use_cpu=true), or unset {name} if this process trains alone"
            )
    return None

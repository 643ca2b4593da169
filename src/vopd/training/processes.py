"""What the processes of a run have to agree on: that they train together, and what stands on several of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from vopd.errors import ConfigurationError
from vopd.models.textless import NEWER_RUNNER

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


def repeated_rows(accelerator: Any, rows: int) -> Tensor | None:
    """Which of a batch's `rows` another process has too: accelerate fills up the last batches of an evaluation.

    None where none can be.
    """
    dataloader = accelerator.gradient_state
    if accelerator.num_processes == 1 or not dataloader.end_of_dataloader or dataloader.remainder <= 0:
        return None
    places = accelerator.process_index * rows + torch.arange(rows, device=accelerator.device)
    return places >= dataloader.remainder


def older_runner(accelerator: Any, engine: Any) -> bool:
    """Whether the server of `engine` uses vLLM's older model runner: the first process asks and tells the others."""
    told = [False]
    if accelerator.is_main_process:
        client = engine.vllm_client
        answer = client.session.get(f"{client.base_url}/server_info", params={"config_format": "json"})
        told = [answer.ok and answer.json().get("vllm_env", {}).get(NEWER_RUNNER) is False]
    return bool(broadcast_object_list(told)[0])

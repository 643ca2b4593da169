"""What stands on several processes of a run, and what they have to agree on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from vopd.models.sampling import NEWER_RUNNER, vllm_bias


def repeated_rows(accelerator: Any, rows: int) -> Tensor | None:
    """Which of a batch's `rows` another process has too: accelerate fills up the last batches of an evaluation.

    None where none can be.
    """
    dataloader = accelerator.gradient_state
    if accelerator.num_processes == 1 or not dataloader.end_of_dataloader or dataloader.remainder <= 0:
        return None
    places = accelerator.process_index * rows + torch.arange(rows, device=accelerator.device)
    return places >= dataloader.remainder


def rollout_bias(accelerator: Any, engine: Any, mode: str, rows: Sequence[int]) -> dict[int, float]:
    """The `logit_bias` with which TRL's vLLM `engine` never samples `rows`; one that the user has set is kept.

    Raises:
        ConfigurationError: on every process, if vLLM would crash with so many ids.
    """
    given = (engine.generation_kwargs or {}).get("logit_bias")
    if mode == "server":
        asked = partial(older_runner, accelerator, engine)
        return vllm_bias(rows, given, engine="vllm serve", older_runner=asked)
    return vllm_bias(rows, given, engine="the training processes")


def older_runner(accelerator: Any, engine: Any) -> bool:
    """Whether the server of `engine` uses vLLM's older model runner: the first process asks and tells the others."""
    told = [False]
    if accelerator.is_main_process:
        client = engine.vllm_client
        answer = client.session.get(f"{client.base_url}/server_info", params={"config_format": "json"})
        told = [answer.ok and answer.json().get("vllm_env", {}).get(NEWER_RUNNER) is False]
    return bool(broadcast_object_list(told)[0])

"""The engine that samples the completions of an evaluation, and its memory limits. Does not import torch, because
options are checked with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vopd.errors import ConfigurationError, check_at_least, check_known


@dataclass(frozen=True)
class Backend:
    """transformers or vLLM. Limits that are None are left to vLLM: most of the GPU, and the model's full context.

    Raises:
        ConfigurationError: the name is unknown, a limit is out of range, or set for another backend than vLLM.
    """

    name: str = "transformers"
    gpu_memory_utilization: float | None = None
    max_model_len: int | None = None

    def __post_init__(self) -> None:
        check_known("backend", self.name, ("transformers", "vllm"))
        for option in self.limits if self.name != "vllm" else ():
            raise ConfigurationError(f"{option} is an option of vLLM; set backend=vllm, or remove {option}")
        share = self.gpu_memory_utilization
        if share is not None and not 0 < share <= 1:
            raise ConfigurationError(
                f"gpu_memory_utilization, a share of the GPU's memory, must be above 0 and at most 1, got {share}"
            )
        check_at_least("max_model_len", self.max_model_len, 1)

    @property
    def limits(self) -> dict[str, Any]:
        """The vLLM options that were set, by their names in vLLM."""
        return {name: value for name, value in asdict(self).items() if name != "name" and value is not None}

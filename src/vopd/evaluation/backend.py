"""Which engine draws the completions of an evaluation, and how much it may take. Loads no torch: options are checked
with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vopd.errors import ConfigurationError, check_at_least, check_known


@dataclass(frozen=True)
class Backend:
    """transformers or vLLM. What is None is left to vLLM: most of the GPU, and the model's whole context.

    Raises:
        ConfigurationError: another name, a limit out of range, or one of vLLM's for another backend.
    """

    name: str = "transformers"
    gpu_memory_utilization: float | None = None
    max_model_len: int | None = None

    def __post_init__(self) -> None:
        check_known("backend", self.name, ("transformers", "vllm"))
        for option in self.limits if self.name != "vllm" else ():
            raise ConfigurationError(f"{option} is vLLM's; add backend=vllm, or remove {option}")
        share = self.gpu_memory_utilization
        if share is not None and not 0 < share <= 1:
            raise ConfigurationError(
                f"gpu_memory_utilization is a share of the GPU, above 0 and at most 1, got {share}"
            )
        check_at_least("max_model_len", self.max_model_len, 1)

    @property
    def limits(self) -> dict[str, Any]:
        """What was given of vLLM's options, by its names."""
        return {name: value for name, value in asdict(self).items() if name != "name" and value is not None}

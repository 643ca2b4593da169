"""The engines that serve teachers: their endpoints, and the form of their responses."""

from .base import Engine
from .sglang import SGLang
from .vllm import VLLM

__all__ = ["ENGINES", "VLLM", "Engine", "SGLang"]

ENGINES: dict[str, type[Engine]] = {"vllm": VLLM, "sglang": SGLang}
"""By who owns a model in a server's list."""

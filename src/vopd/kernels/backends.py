"""Selects the implementation of the row pass: torch or Triton."""

from __future__ import annotations

import functools
import logging

import torch

from vopd.errors import ConfigurationError, MissingExtraError, how_to_install, installed

from .row_pass import MakePass
from .torch_rows import TorchPass

BACKENDS = ("auto", "torch", "triton")

logger = logging.getLogger("vopd")


def choose_pass(backend: str, device: torch.device) -> MakePass:
    """Return the row pass of a backend. "auto" is Triton on CUDA if it is installed and passes a check, else torch.

    Raises:
        ConfigurationError: the backend is unknown, or it is "triton" and the tensors are not on a GPU.
        MissingExtraError: the backend is "triton", which is not installed.
    """
    if backend not in BACKENDS:
        raise ConfigurationError(f"unknown backend {backend!r}: use one of {', '.join(BACKENDS)}")
    if backend == "torch" or (backend == "auto" and not _auto_triton(device)):
        return TorchPass
    if not installed("triton"):
        raise MissingExtraError(
            f"triton is needed for backend 'triton'; {how_to_install('triton', 'kernels')}; or choose 'auto'"
        )
    from .triton_rows import INTERPRETED, TritonPass

    if device.type != "cuda" and not INTERPRETED:
        raise ConfigurationError(
            f"backend 'triton' needs CUDA tensors, but these are on {device.type}: use backend='auto', move them to a "
            "GPU, or set TRITON_INTERPRET=1 before Python starts to run the kernels in Triton's interpreter"
        )
    return TritonPass


def backend_name(backend: str, device: torch.device) -> str:
    """Return the backend that runs for `backend`: "torch" or "triton". Raises the errors of ``choose_pass``."""
    return "torch" if choose_pass(backend, device) is TorchPass else "triton"


def _auto_triton(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    if not installed("triton"):
        _tell_once("triton is not installed, so the distillation loss runs in plain torch; pip install triton")
        return False
    from .trial import trouble

    reason = trouble(device)
    if reason is not None:
        _tell_once(f"the Triton kernels cannot be used here ({reason}), so the distillation loss runs in plain torch")
    return reason is None


@functools.cache
def _tell_once(message: str) -> None:
    logger.warning(message)

"""Times on the device, and the arguments that the measurements share."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS = 7


def milliseconds(call: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median over `rounds` calls after two that warm up; device time on a GPU, else wall time."""
    for _ in range(2):
        call()
    return statistics.median(_once(call) for _ in range(rounds))


def _once(call: Callable[[], object]) -> float:
    if DEVICE == "cpu":
        started = time.perf_counter()
        call()
        return (time.perf_counter() - started) * 1000
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def arguments(description: str | None) -> argparse.Namespace:
    """--json FILE and --dry-run."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", required=True, help="file of the results")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, on any machine")
    return parser.parse_args()

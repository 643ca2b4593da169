"""What would wait for a GPU, found on a CPU: operations whose result the host has to read before it can go on.

Two modes of torch see every call, that of the operators and that of the Python functions above them. They see what
reads values (``item``, ``tolist``, ``bool``), what has a shape that depends on values (``nonzero``, a boolean index),
and every tensor made of numbers of the host. What they cannot see on a CPU is a copy between two devices, since there
is one only, nor what a library does by itself in C++, such as a collective or an allocation that has to wait; and a
tensor of numbers that is to stay on the host looks like one that is copied to the device. So these are named as well.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_PACKAGES = ("vopd", "trl", "accelerate", "transformers")
_READ = {
    "_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "lift_fresh", "lift_fresh_copy",
}  # fmt: skip
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_FUNCTIONS = {"tolist", "numpy", "cpu", "__array__", "pin_memory"}
_BOOLEAN = (torch.bool, torch.uint8)


def of_a_micro_batch(trainer: Any) -> Counter[str]:
    """What waits from the end of a step's first micro-batch, which has the rollout, to the end of the second.

    That takes in forward and backward pass, and what transformers does in between. Takes a step of the trainer.
    """
    training_step, calls = trainer.training_step, []
    recording = recorded_synchronisations()

    def step(*args: Any) -> Any:
        result = training_step(*args)
        calls.append(recording.__enter__() if not calls else calls[0])
        if len(calls) == 2:
            recording.__exit__(None, None, None)
        return result

    trainer.training_step = step
    trainer.train()
    assert len(calls) > 1, "there is one micro-batch"
    return calls[0]


def of_a_step(trainer: Any) -> Counter[str]:
    """What waits from the end of the sampling of the trainer's second step to the end of its log.

    That takes in what is done with the completions, scoring, forward and backward passes, optimizer, and metrics. Takes
    two steps of the trainer.
    """
    sample, log = trainer._generate_single_turn, trainer.log
    recording = recorded_synchronisations()
    found: list[Counter[str]] = []

    def sampled(*given: Any, **named: Any) -> Any:
        result = sample(*given, **named)
        if trainer.state.global_step == 1:
            found.append(recording.__enter__())
        return result

    def logged(*given: Any, **named: Any) -> None:
        log(*given, **named)
        if found and not ended:
            ended.append(recording.__exit__(None, None, None))

    ended: list[None] = []
    trainer._generate_single_turn, trainer.log = sampled, logged
    trainer.train()
    assert len(found) == 1 and ended, "the trainer takes two steps and logs each"
    return found[0]


@contextmanager
def recorded_synchronisations() -> Iterator[Counter[str]]:
    """Counts, as "module.function: operation", what the innermost function of these packages did within."""
    found: Counter[str] = Counter()
    with _Operators(found), _Functions(found):
        yield found


class _Operators(TorchDispatchMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _READ or (name in _INDEXED and _by_values(args[1])) or _counted(name, func, kwargs):
            self.found[f"{_caller()}: {name}"] += 1
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _FUNCTIONS:
            self.found[f"{_caller()}: {name}"] += 1
        return func(*args, **(kwargs or {}))


def _by_values(indices: Any) -> bool:
    return any(index is not None and index.dtype in _BOOLEAN for index in indices)


def _counted(name: str, func: Any, kwargs: Any) -> bool:
    """``repeat_interleave`` adds up its counts unless it is told their sum."""
    return name == "repeat_interleave" and "output_size" not in (kwargs or {})


def _caller() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.split(".")[0] in _PACKAGES:
            return f"{name}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"

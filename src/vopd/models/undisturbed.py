"""A model borrowed: modes, settings and random states are afterwards what they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode, module by module: no dropout, and no checkpointing of activations that nobody will ask for."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def random_state(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """A random state of one's own on the host and on `device`, seeded where a seed is given."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if seed is not None:
            torch.manual_seed(seed)
        yield


@contextmanager
def own_generation_config(model: Any, config: Any) -> Iterator[None]:
    """Let ``generate`` sample with `config` alone.

    Whatever a config leaves None is filled in from the model's generation_config.json: a min_p or a ban on repeated
    n-grams from there would truncate the sampling distribution behind the estimator's back. The model's own config
    comes back afterwards, for it is saved with the model.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    with replaced(model, generation_config=config), replaced(base, generation_config=config):
        yield


@contextmanager
def replaced(holder: Any, **values: Any) -> Iterator[None]:
    """Attributes of `holder` as given; afterwards as they were, or absent where they were."""
    before = {name: getattr(holder, name) for name in values if hasattr(holder, name)}
    try:
        for name, value in values.items():
            setattr(holder, name, value)
        yield
    finally:
        for name in values:
            if name in before:
                setattr(holder, name, before[name])
            else:
                delattr(holder, name)

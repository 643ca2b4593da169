"""Contexts that use a model and restore its mode, settings and the random state afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Context in which a model is in evaluation mode: no dropout, and no activation checkpointing."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def random_state(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Context with separate random states of Python, numpy and torch, on the host and on `device`.

    Seeded if a seed is given.
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            if seed is not None:
                torch.manual_seed(seed)
                random.seed(seed)
                np.random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def own_generation_config(model: Any, config: Any) -> Iterator[None]:
    """Context in which ``generate`` samples with `config` only.

    transformers fills settings that are None from the model's generation_config.json: a min_p or no_repeat_ngram_size
    there would silently truncate the sampling distribution. The model's own configuration is restored afterwards,
    because it is saved with the model.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    with replaced(model, generation_config=config), replaced(base, generation_config=config):
        yield


@contextmanager
def replaced(holder: Any, **values: Any) -> Iterator[None]:
    """Context in which attributes of `holder` have the given values; afterwards they are restored or removed again."""
    before = {name: getattr(holder, name) for name in values if hasattr(holder, name)}
    inherited = values.keys() - vars(holder).keys()
    try:
        for name, value in values.items():
            setattr(holder, name, value)
        yield
    finally:
        for name in values:
            if name in inherited and name in vars(holder):
                delattr(holder, name)  # a class or a wrapped model has it again
            else:
                setattr(holder, name, before[name])

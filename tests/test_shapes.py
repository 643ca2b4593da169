"""The shapes in signatures are checked while tests run, and such a check can fail."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError

import vopd
from shapes import CHECKED_BY_THEMSELVES, PACKAGES, has_shapes
from vopd.errors import ConfigurationError
from vopd.functional import Moments, moments, sparse_top_k_baseline
from vopd.kernels import GradientForm, TorchPass
from vopd.kernels.row_pass import ChunkLogits


def test_arguments_of_different_shapes_are_caught() -> None:
    with pytest.raises(TypeCheckError, match="teacher_logits"):
        moments(torch.zeros(2, 3, 7), torch.zeros(2, 3, 8))
    with pytest.raises(TypeCheckError, match="top_k_rewards"):
        sparse_top_k_baseline(torch.zeros(4, 3), torch.zeros(3))  # would be broadcast without a word


def test_a_field_of_another_shape_or_kind_is_caught() -> None:
    with pytest.raises(TypeCheckError, match="centred_reward"):
        Moments(torch.zeros(4), torch.zeros(4), torch.zeros(4, 1))
    with pytest.raises(TypeCheckError, match="ids"):
        GradientForm(a=torch.zeros(4), ids=torch.zeros(4, 2), values=torch.zeros(4, 2))


def test_a_result_of_another_shape_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    row_pass = TorchPass(ChunkLogits(torch.zeros(4, 7), None))
    assert row_pass.at(torch.zeros(4, 2, dtype=torch.int64))[0].shape == (4, 2)
    monkeypatch.setattr(torch.Tensor, "gather", lambda self, dim, ids: self[:, :1])
    with pytest.raises(TypeCheckError, match="return value"):
        row_pass.at(torch.zeros(4, 2, dtype=torch.int64))


def test_the_losses_name_a_callers_mistake_themselves() -> None:
    with pytest.raises(ConfigurationError, match="teacher_logits has shape"):
        vopd.distillation_loss(torch.zeros(4, 7), torch.zeros(3, 7), torch.zeros(4, dtype=torch.int64))


def functions_with_shapes() -> Iterator[tuple[str, Any]]:
    """Those of the modules and of their classes, but for Triton's."""
    for package in map(importlib.import_module, PACKAGES):
        for entry in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if "triton" in entry.name:
                continue
            for name, found in vars(importlib.import_module(entry.name)).items():
                if getattr(found, "__module__", "") != entry.name or name in CHECKED_BY_THEMSELVES:
                    continue
                members = vars(found).values() if inspect.isclass(found) else [found]
                for member in (getattr(member, "fget", member) for member in members):
                    if inspect.isfunction(member) and has_shapes(member):
                        yield f"{entry.name}: {member.__qualname__}", member


def test_every_signature_with_shapes_is_checked_and_every_shape_is_understood() -> None:
    """A shape that jaxtyping cannot read, or a name that it does not find, would pass for any value."""
    found = dict(functions_with_shapes())
    assert [name for name, function in found.items() if "jaxtyping" not in function.__code__.co_filename] == []
    for function in found.values():
        hints = typing.get_type_hints(inspect.unwrap(function), vars(inspect.getmodule(function)), include_extras=True)
        assert any("[Tensor, " in repr(hint) for hint in hints.values())
    assert {"vopd.kernels.rows: Rows.__init__", "vopd.functional.moments: Moments.weight"} <= set(found)
    assert len(found) > 80

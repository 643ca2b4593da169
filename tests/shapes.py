"""Runs functional, kernels and estimators with the shapes in their signatures checked, by jaxtyping and beartype."""

from __future__ import annotations

import importlib
import pkgutil
import typing
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any
from unittest import mock

import jaxtyping

jaxtyped = jaxtyping.jaxtyped
PACKAGES = ("vopd.functional", "vopd.kernels", "vopd.estimators")

# Mistakes of their callers are ConfigurationErrors, found by estimators/checks.py and tested as such. The losses look
# at a server's ids when they stand in a Batch already.
CHECKED_BY_THEMSELVES = ("distillation_loss", "linear_distillation_loss", "TopKScores", "Batch")


def has_shapes(target: Any) -> bool:
    """Whether a function is annotated with shapes; classes are looked into. Annotations are text here."""
    hints = getattr(target, "__annotations__", {}).values()
    return isinstance(target, type) or any("[Tensor, " in str(hint) for hint in hints)


def shapes_alone(*, typechecker: Callable[..., Any]) -> Callable[[Any], Any]:
    """In the place of ``jaxtyping.jaxtyped``: functions without shapes stay as they are, and so do hints without.

    mypy has looked after those, and checking them all takes as long again as the tests of these packages.
    """

    def check(function: Any) -> Any:
        hints = function.__annotations__
        shapes = {name: hint for name, hint in hints.items() if "[Tensor, " in repr(hint)}
        # jaxtyping asks twice: for the parameters, as if anything were returned, and for all of them with what was.
        if "return" not in shapes and hints.get("return", Any) is not Any:
            return function
        function.__annotations__ = shapes
        return typechecker(function)

    def decorate(target: Any) -> Any:
        if target.__qualname__ in CHECKED_BY_THEMSELVES or not has_shapes(target):
            return target
        return jaxtyped(target, typechecker=check)

    return decorate


def check_shapes() -> None:
    """Imports the packages, for the first time, such that a wrong shape in a call raises jaxtyping.TypeCheckError.

    They import jaxtyping under TYPE_CHECKING alone, which is therefore true meanwhile: for them, not for what they
    import or are checked by, which would then import what is there for type checkers alone.
    """
    triton = find_spec("triton") is not None
    for outside in ["torch", "vopd", "beartype", *["triton"] * triton]:
        importlib.import_module(outside)
    jaxtyping.jaxtyped = shapes_alone  # type: ignore[assignment]
    hook = jaxtyping.install_import_hook(PACKAGES, "beartype.beartype")
    with hook, mock.patch.object(typing, "TYPE_CHECKING", True):
        for package in map(importlib.import_module, PACKAGES):
            for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
                if triton or "triton" not in module.name:
                    importlib.import_module(module.name)

"""Loads objects from the user's modules, named as `module:NAME` in options and configuration files."""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import os
import sys
import textwrap
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

from vopd.errors import ConfigurationError, MissingExtraError, did_you_mean, first_line


def imported(spelling: str, kind: str) -> Any:
    """Import the object that `module:NAME` names; the module may be in the working directory.

    Args:
        spelling: `module:NAME`.
        kind: what the object is called in errors, such as "estimator".

    Raises:
        ConfigurationError: the module does not exist, cannot be imported, or does not have this name.
    """
    module, _, name = spelling.partition(":")
    if module.endswith(".py") or not all(part.isidentifier() for part in (*module.split("."), name)):
        raise ConfigurationError(
            f"{kind} '{spelling}' is not of the form module:NAME; write my_module:MINE for MINE in my_module.py"
        )
    here = os.getcwd()
    if here not in sys.path:  # as with `python -m`; a console script does not add it
        sys.path.append(here)
    try:
        found = importlib.import_module(module)
    except MissingExtraError:
        raise
    except Exception as error:  # anything can go wrong in a user's module
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"{kind} '{spelling}': there is no module '{error.name}'; run the command in the folder that contains "
                "it, or add that folder to PYTHONPATH"
            ) from error
        raise ConfigurationError(f"{kind} '{spelling}' cannot be imported: {told_with_place(error)}") from error
    if not hasattr(found, name):
        hint = did_you_mean(name, vars(found))
        raise ConfigurationError(f"{kind} '{spelling}': module '{module}' has no '{name}' {hint}".strip())
    return getattr(found, name)


def told_with_place(error: Exception) -> str:
    """Return type, message and location of an error in a user's code: the last frame outside vopd and Python."""
    own = (str(Path(__file__).parent), "<frozen", importlib.__path__[0])
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(own)]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first_line(error)}{where}"


def spelling_of(value: object) -> str | None:
    """Return `module:NAME` of an object that an imported module has under that name; None if there is no such module.

    The script that Python runs is skipped, because another process cannot import it as `__main__`. So are names that an
    interactive session keeps in builtins.
    """
    for module_name, module in sys.modules.copy().items():
        if not module_name.startswith(("__", "builtins")):  # __mp_main__ in a child process
            for name, held in getattr(module, "__dict__", {}).copy().items():
                if held is value or (type(held) is type(value) and held == value):  # a copy
                    return f"{module_name}:{name}"
    return None


def source_digest(function: Any, *values: object) -> str | None:
    """Return a digest of a function's source, of what it uses from its own module or was bound to, and of `values`.

    Comments and line breaks do not count. None for a function of vopd itself, or without source.
    """
    if str(getattr(function, "__module__", "")).partition(".")[0] == "vopd":
        return None
    parts: dict[str, str] = {}
    _read(function, parts)
    text = "\n".join([*(parts[name] for name in sorted(parts)), *map(repr, values)])
    return f"source {hashlib.sha256(text.encode()).hexdigest()[:12]}" if parts else None


def _read(function: Any, parts: dict[str, str]) -> None:
    """Add the source of `function` to `parts`, and of the functions and numbers of its module that it names."""
    if isinstance(function, partial):
        _keep(parts, {**dict(enumerate(function.args)), **function.keywords})
        function = function.func
    function = inspect.unwrap(function)
    name = getattr(function, "__qualname__", "")
    if not inspect.isfunction(function) or name in parts:
        return
    try:
        parts[name] = _without_layout(inspect.getsource(function))
    except (OSError, TypeError):
        return
    with suppress(ValueError):  # a name of the function around it that has no value yet
        _keep(
            parts,
            {used: cell.cell_contents for used, cell in zip(function.__code__.co_freevars, function.__closure__ or ())},
        )
    for used in _names(function.__code__):
        value = function.__globals__.get(used)
        if inspect.isfunction(value) and value.__module__ == function.__module__:
            _read(value, parts)
        else:
            _keep(parts, {used: value})


def _keep(parts: dict[str, str], values: Mapping[Any, object]) -> None:
    """Add the values that are written in the same way in every process, unlike functions and other objects."""
    parts |= {str(name): f"{name} = {value!r}" for name, value in values.items() if _is_plain(value)}


def _is_plain(value: object) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, tuple) else isinstance(value, bool | int | float | str)


def _without_layout(source: str) -> str:
    try:
        return ast.dump(ast.parse(textwrap.dedent(source)))
    except SyntaxError:  # the lines of a lambda inside an expression
        return source


def _names(code: CodeType) -> Iterator[str]:
    """The global names that a function and those within it use."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)

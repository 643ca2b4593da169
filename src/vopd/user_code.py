"""Objects of the user's own modules, which options and files name as `module:NAME`."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from vopd.errors import ConfigurationError, MissingExtraError, did_you_mean, first_line


def imported(spelling: str, kind: str) -> Any:
    """The object that `module:NAME` stands for; the module may lie in the working folder.

    Args:
        spelling: module and name.
        kind: what errors call it, such as "estimator".

    Raises:
        ConfigurationError: there is no such module, it cannot be imported, or there is no such name in it.
    """
    module, _, name = spelling.partition(":")
    if module.endswith(".py") or not all(part.isidentifier() for part in (*module.split("."), name)):
        raise ConfigurationError(
            f"{kind} '{spelling}' is not of the form module:NAME, such as my_module:MINE for MINE in my_module.py"
        )
    here = os.getcwd()
    if here not in sys.path:  # as `python -m` would have it; the console script has not
        sys.path.append(here)
    try:
        found = importlib.import_module(module)
    except MissingExtraError:
        raise
    except Exception as error:  # whatever goes wrong in a user's module
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"{kind} '{spelling}': there is no module '{error.name}'; start the command in the folder that holds "
                "it, or put that folder on PYTHONPATH"
            ) from error
        raise ConfigurationError(f"{kind} '{spelling}' cannot be imported: {told_with_place(error)}") from error
    if not hasattr(found, name):
        hint = did_you_mean(name, vars(found))
        raise ConfigurationError(f"{kind} '{spelling}': module '{module}' has no '{name}' {hint}".strip())
    return getattr(found, name)


def told_with_place(error: Exception) -> str:
    """What an error in a user's code says, its kind, and the last place outside this package and Python's own."""
    own = (str(Path(__file__).parent), "<frozen", importlib.__path__[0])
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(own)]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first_line(error)}{where}"


def spelling_of(value: object) -> str | None:
    """`module:NAME` of an object that an imported module holds under that name; None where none does.

    The script that Python was started with is left out: another process cannot import it under the name `__main__`. So
    is what an interactive session keeps among the builtins.
    """
    for module_name, module in sys.modules.copy().items():
        if not module_name.startswith(("__", "builtins")):  # __mp_main__ in a process that it began
            for name, held in getattr(module, "__dict__", {}).copy().items():
                if held is value or (type(held) is type(value) and held == value):  # a copy
                    return f"{module_name}:{name}"
    return None

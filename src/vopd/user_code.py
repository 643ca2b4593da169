"""Objects of the user's own modules, which options and files name as `module:NAME`."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from vopd.errors import ConfigurationError, MissingExtraError, did_you_mean


def imported(spelling: str, kind: str) -> Any:
    """The object that `module:NAME` stands for; the module may lie in the working folder.

    Args:
        spelling: module and name.
        kind: what errors call it, such as "estimator".

    Raises:
        ConfigurationError: there is no such module, or no such name in it. What goes wrong inside the module while it
            is imported is raised as it is.
    """
    module, _, name = spelling.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise ConfigurationError(f"{kind} '{spelling}' is not of the form module:NAME, such as my_module:MINE")
    here = os.getcwd()
    if here not in sys.path:  # as `python -m` would have it; the console script has not
        sys.path.append(here)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if isinstance(error, MissingExtraError) or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ConfigurationError(
            f"{kind} '{spelling}': there is no module '{error.name}'; start the command in the folder that holds it, "
            "or put that folder on PYTHONPATH"
        ) from error
    if not hasattr(found, name):
        hint = did_you_mean(name, vars(found), f"it has {', '.join(n for n in vars(found) if n[0] != '_')}")
        raise ConfigurationError(f"{kind} '{spelling}': module '{module}' has no '{name}'; {hint}")
    return getattr(found, name)


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

"""The errors that vopd raises, each with the exit code of the `vopd` command.

A message is a single line that names what is wrong and how to fix it.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Iterable
from types import ModuleType


class VOPDError(Exception):
    """Base class of every error that vopd raises deliberately."""

    exit_code = 1


class ConfigurationError(VOPDError, ValueError):
    """A setting is unknown, out of range, or conflicts with another setting."""

    exit_code = 2


class MissingExtraError(ConfigurationError, ImportError):
    """A package from an optional extra is not installed."""


class DataError(VOPDError, ValueError):
    """Prompts or problems are missing, empty, or not in the expected form."""

    exit_code = 3


class MismatchError(VOPDError, ValueError):
    """A model or tokenizer cannot be loaded, or student and teacher do not match."""

    exit_code = 4


class TeacherServerError(VOPDError, RuntimeError):
    """The teacher server is unreachable or returned a response that cannot be used."""

    exit_code = 5


class NonFiniteError(VOPDError, RuntimeError, FloatingPointError):
    """The loss, a gradient or a model's output is NaN or infinite."""

    exit_code = 6


class GuardError(VOPDError, RuntimeError):
    """A guard that is configured to stop the run fired; a checkpoint was saved first."""

    exit_code = 7


class Terminated(VOPDError, SystemExit):
    """The run was stopped by SIGTERM; a checkpoint was saved first. If uncaught, the script exits with code 143."""

    exit_code = 143
    code = 143


def require(module: str, extra: str) -> ModuleType:
    """Import `module` and return it; if its package is missing, the error names the extra of vopd to install.

    Raises:
        MissingExtraError: the package is not installed. An import error inside an installed package is raised
            unchanged: installing the extra again would not fix it.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingExtraError(f"{package} is needed for this; {how_to_install(package, extra)}") from error


def how_to_install(package: str, extra: str) -> str:
    """Return how to install a package that an extra of vopd has; vopd itself is on no index."""
    name = {"yaml": "pyyaml"}.get(package, package.replace("_", "-"))
    return f"install it with pip install -e '.[{extra}]' in a checkout of vopd, or with pip install {name}"


def installed(package: str) -> bool:
    """Return whether a package is installed, without importing it; a folder of its name does not count."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def check_known(what: str, value: object, known: Iterable[object]) -> None:
    """Raise ConfigurationError, listing the choices, if `value` is not one of `known`."""
    if value not in (choices := list(known)):
        raise ConfigurationError(f"unknown {what} '{value}'; choose one of {', '.join(map(str, choices))}")


def check_at_least(name: str, value: float | None, least: float) -> None:
    """Raise ConfigurationError if the setting `name` is below `least`; None is accepted."""
    if value is not None and not value >= least:  # NaN fails every comparison
        raise ConfigurationError(f"{name} must be at least {least}, got {value}")


def did_you_mean(name: object, known: Iterable[str], otherwise: str = "") -> str:
    """Return a hint that names the closest match to `name` among `known`; `otherwise` if there is none."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean '{close[0]}'?" if close else otherwise


def printable(text: str, kept: str = "") -> str:
    """Return `text` with control characters escaped, except those in `kept`: text from data may contain any."""
    return "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in text)


def first_line(error: Exception) -> str:
    """Return the first line of another library's error message, or the error's type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def one_line(error: Exception) -> str:
    """Return another library's error message on one line, or the error's type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """Return a number with its noun, "1 prompt" or "17,398 prompts"; `plural` if it is not `singular` with an s."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"

"""Errors that a user can meet, each with the exit code that `vopd` ends with.

Every message is one clear line that names what is wrong and what to do about it.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class VOPDError(Exception):
    """Base of every error that vopd raises on purpose."""

    exit_code = 1


class ConfigurationError(VOPDError, ValueError):
    """A setting is unknown, out of range, or does not go with another one."""

    exit_code = 2


class MissingExtraError(ConfigurationError, ImportError):
    """A package of an optional extra is not installed."""


class DataError(VOPDError, ValueError):
    """Prompts or problems are missing, empty, or not in the expected form."""

    exit_code = 3


class MismatchError(VOPDError, ValueError):
    """A model or tokenizer cannot be loaded, or student and teacher do not fit each other."""

    exit_code = 4


class TeacherServerError(VOPDError, RuntimeError):
    """The teacher server is out of reach or answered something that cannot be used."""

    exit_code = 5


class NonFiniteError(VOPDError, RuntimeError, FloatingPointError):
    """Training met a NaN or an infinity."""

    exit_code = 6


class GuardError(VOPDError, RuntimeError):
    """A guard that was told to stop the run saw what it guards against; a checkpoint was saved first."""

    exit_code = 7


class Terminated(VOPDError, SystemExit):
    """The run was ended by SIGTERM; a checkpoint was saved first. A script that lets it pass ends with 143 as well."""

    exit_code = 143
    code = 143


def require(module: str, extra: str) -> ModuleType:
    """Import `module` and return it; if its package is absent, name the extra of vopd that brings it.

    Raises:
        MissingExtraError: the package is not installed. An import error from inside an installed package is
            passed on as it is, since installing the extra again would not mend it.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingExtraError(f"{package} is needed for this; install it with pip install 'vopd[{extra}]'") from error


def check_known(what: str, value: object, known: Iterable[object]) -> None:
    """Raises ConfigurationError, naming what is `known`, where `value` is none of it."""
    if value not in (choices := list(known)):
        raise ConfigurationError(f"unknown {what} '{value}'; choose one of {', '.join(map(str, choices))}")


def check_at_least(name: str, value: float | None, least: float) -> None:
    """Raises ConfigurationError where the setting `name` is below `least`; None is no value."""
    if value is not None and not value >= least:  # NaN is above nothing
        raise ConfigurationError(f"{name} must be at least {least}, got {value}")


def did_you_mean(name: object, known: Iterable[str], otherwise: str = "") -> str:
    """Return a hint at the one of `known` that an unknown `name` is nearly the same as; `otherwise` where none is."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean '{close[0]}'?" if close else otherwise


def printable(text: str, kept: str = "") -> str:
    """Return `text` with its control characters spelled out, but for those in `kept`: they may come from data."""
    return "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in text)


def first_line(error: Exception) -> str:
    """Return the first line of what an error of another library says, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """Return a number with its noun, "1 prompt" or "2 prompts"; `plural` if it is not `singular` with an s."""
    return f"{count} {singular if count == 1 else plural or singular + 's'}"

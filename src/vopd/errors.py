"""The errors that vopd raises, each with the exit code of the `vopd` command.

A message is a single line that names what is wrong and how to fix it; of several faults, one line each.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import TypeVar

from vopd.secrets import hidden

T = TypeVar("T")


class VOPDError(Exception):
    """Base class of every error that vopd raises deliberately.

    Attributes:
        exit_code: of the `vopd` command.
        more: further faults that were found by independent checks; each is a further line of the message.
    """

    exit_code = 1
    more: tuple[VOPDError, ...] = ()

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *map(str, self.more)])


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


class Interrupted(VOPDError, KeyboardInterrupt):
    """Ctrl-C: the step was finished and a checkpoint saved first. A second Ctrl-C ends at once, without saving."""

    exit_code = 130


class Terminated(VOPDError, SystemExit):
    """The run was stopped by SIGTERM; a checkpoint was saved first. If uncaught, the script exits with code 143."""

    exit_code = 143
    code = 143


class Faults:
    """The failures of independent checks, collected to tell all of them at once: ``with faults: ...`` keeps the error
    that vopd raises in its block.

    Attributes:
        found: the errors so far, each with one fault, and each text once.
    """

    def __init__(self) -> None:
        self.found: list[VOPDError] = []

    def check(self, check: Callable[..., T], *given: object, **named: object) -> T | None:
        """Return the result of a check; None if it fails."""
        with self:
            return check(*given, **named)
        return None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, VOPDError):
            self.add(error)
        return isinstance(error, VOPDError)

    def add(self, error: VOPDError) -> None:
        """Keep the faults of an error."""
        faults, error.more = (error, *error.more), ()
        for fault in faults:
            if str(fault) not in map(str, self.found):
                self.found.append(fault)

    def tell(self) -> None:
        """Raise the first fault, with its type and exit code, and all the others as further lines of its message."""
        if self.found:
            first, *others = self.found
            first.more = tuple(others)
            raise first


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
    """Return the first line of another library's error message without secrets, or the error's type."""
    return hidden((str(error).strip() or type(error).__name__).splitlines()[0])


def one_line(error: Exception) -> str:
    """Return another library's error message on one line without secrets, or the error's type."""
    return hidden(" ".join(str(error).split()) or type(error).__name__)


def shortened(text: object, *secrets: str) -> str:
    """Return at most 200 characters of a server's text, on one line, without control characters and secrets."""
    # Secrets first: of one that is cut, a part would be left.
    return printable(hidden(" ".join(str(text).split()), *secrets))[:200]


def causes(error: BaseException | None) -> Iterator[Exception]:
    """Yield an error and those that led to it."""
    while isinstance(error, Exception):
        yield error
        error = error.__cause__ or error.__context__


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """Return a number with its noun, "1 prompt" or "17,398 prompts"; `plural` if it is not `singular` with an s."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def byte_size(count: int) -> str:
    """Return "1.2 GiB", "3.0 MiB"."""
    gib = 1 << 30
    return f"{count / gib:.1f} GiB" if count >= gib / 10 else f"{count / (1 << 20):.1f} MiB"

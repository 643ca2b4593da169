"""A user's function that scores completions, with TRL's signature: a reward in training, a grader in evaluations."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vopd.errors import ConfigurationError, NonFiniteError, VOPDError, counted
from vopd.user_code import imported, told_with_place

GIVEN = ("prompts", "completions", "completion_ids", "trainer_state")
"""Arguments that are no columns of the data. An evaluation has only the first two."""


@dataclass(frozen=True)
class Scorer:
    """A function that scores completions.

    Attributes:
        kind: what it is called in errors, such as "reward function".
        name: its name in metrics and errors.
        function: (prompts, completions, completion_ids, **columns) -> a number or None for each completion.
    """

    kind: str
    name: str
    function: Callable[..., Any]

    @classmethod
    def of(cls, given: Any, kind: str) -> Scorer:
        """The scorer that `given` is, or names as module:function.

        Raises:
            ConfigurationError: it cannot be imported, or is not a plain function.
        """
        name = given
        given = imported(given, kind) if isinstance(given, str) else given
        if not callable(given):
            what = f"'{name}' is of type {type(given).__name__}"
            raise ConfigurationError(f"a {kind} must be a name or a callable, but {what}")
        try:
            inspect.signature(given)
        except ValueError as error:  # of some that are written in C
            raise ConfigurationError(
                f"{kind} '{_name(given)}' does not tell its arguments; wrap it in a def"
            ) from error
        if inspect.iscoroutinefunction(given) or inspect.iscoroutinefunction(getattr(given, "__call__", None)):  # noqa: B004
            raise ConfigurationError(
                f"{kind} '{_name(given)}' is asynchronous, which is not supported; make it a plain function"
            )
        return cls(kind, _name(given), given)

    @property
    def needed(self) -> tuple[str, ...]:
        """The arguments without a default."""
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(p.name for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty)

    def __call__(self, given: Mapping[str, Any]) -> list[float]:
        """The scores, NaN for None. `given` are all arguments that there are; the function gets those it takes.

        Raises:
            ConfigurationError: the function fails, or returns another number of scores, or something else than numbers.
            NonFiniteError: a score is NaN or infinite.
        """
        try:
            found = self.function(**self._accepted(given))
        except VOPDError:
            raise
        except Exception as error:  # anything can go wrong in a user's function
            raise ConfigurationError(
                f"{self.kind} '{self.name}' failed: {told_with_place(error)}; correct it"
            ) from error
        wanted = len(given["completions"])
        if isinstance(found, str) or not hasattr(found, "__len__") or len(found) != wanted:
            got = type(found).__name__ if isinstance(found, str) or not hasattr(found, "__len__") else len(found)
            raise ConfigurationError(
                f"{self.kind} '{self.name}' returned {got} for {counted(wanted, 'completion')}; return a list with one "
                "number or None per completion"
            )
        return [self._number(value) for value in found]

    def _accepted(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the function takes of `given`: all if it has **kwargs, as in TRL, else the arguments that it names."""
        parameters = inspect.signature(self.function).parameters
        if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
            return dict(given)
        return {name: value for name, value in given.items() if name in parameters}

    def _number(self, value: Any) -> float:
        if value is None:
            return math.nan
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"{self.kind} '{self.name}' returned {value!r}, which is not a number; return a float or None"
            ) from error
        if not math.isfinite(number):
            raise NonFiniteError(
                f"{self.kind} '{self.name}' returned {number}; return None for completions without a score"
            )
        return number


def _name(function: Any) -> str:
    while hasattr(function, "func"):  # functools.partial
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))

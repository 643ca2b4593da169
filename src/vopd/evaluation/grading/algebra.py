"""Equality with math-verify and sympy. Runs in a worker process, because nothing here limits its own time.

math-verify parses LaTeX; its verdict is used only where it is safe. Numbers are compared here, with a relative
tolerance, because math-verify rounds to six decimals (1e-10 equals 2e-10) and drops small differences of exact numbers.
A "yes" for expressions with symbols is checked at random points.
"""

from __future__ import annotations

import logging
import random
import re
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify

from .structure import collection, plainly_readable, same, split_name
from .units import split_unit

logging.getLogger("math_verify").setLevel(logging.ERROR)
# Units were removed before (math-verify would read 2m as 2), and so were boxes.
_CONFIG = LatexExtractionConfig(
    normalization_config=NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    )
)
_DIGITS = 30
_POINTS = 4
# Commands, text and letters with a subscript are skipped.
_LETTERS = re.compile(r"\\text\{[^{}]*\}|\\mathbb\{[^{}]*\}|\\[A-Za-z]+|[A-Za-z]_|[A-Za-z]")
_RELATIONS = ("<", ">", "\\leq", "\\geq", "\\neq")
_INEQUALITIES = (sympy.StrictLessThan, sympy.StrictGreaterThan, sympy.LessThan, sympy.GreaterThan, sympy.Ne)


@lru_cache(maxsize=2048)
def parsed(text: str) -> Any:
    """The sympy object of a normalized answer, or None. Wrapped in dollars, without which ``x+1`` would not parse."""
    found = parse(
        "$" + text.replace("\n", " ") + "$",
        [_CONFIG],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,  # type: ignore[arg-type]  # the parent process enforces the limit
    )
    return found[0] if found else None


@lru_cache(maxsize=2048)
def readable(gold: str) -> bool:
    """Whether the grader can read a normalized reference answer."""
    if plainly_readable(gold):
        return True
    gold = split_unit(gold)[0].removesuffix("%").strip()
    if not gold:
        return False
    name = split_name(gold)
    if name and name[1] != gold:
        return readable(name[1])
    group = collection(gold)
    if (group.opening or len(group.items) > 1) and all(readable(item) for item in group.items):
        return True
    return parsed(gold) is not None


def judge(gold: str, answer: str) -> bool:
    """Whether two normalized answers are equal; the reference answer must be readable."""
    return bool(same(gold, answer, equal_expressions))


def equal_expressions(gold: str, answer: str) -> bool:
    """Equality of two single expressions in LaTeX."""
    sets = _solution_set(gold), _solution_set(answer)
    if None not in sets:
        return bool(sets[0] == sets[1])
    one, other = (parsed(text) for text in _capitals_apart(gold, answer))
    if one is None or other is None:
        return False
    if one.has(sympy.Derivative) or other.has(sympy.Derivative):
        return bool(one == other)  # evaluated, dy/dx and dx/dy are both 0
    verdict = _equal_numbers(*_with_imaginary_unit(one, other))
    if verdict is not None:
        return verdict
    if not verify(one, other, allow_set_relation_comp=True, timeout_seconds=None):
        return False
    return _agree_at_points(one, other)


def _capitals_apart(*texts: str) -> list[str]:
    """Rename capitals if a letter occurs in both cases, because the parser reads R as r."""
    letters = {token for text in texts for token in _LETTERS.findall(text) if len(token) == 1}
    mixed = {letter for letter in letters if letter.isupper() and letter.lower() in letters}
    return [_LETTERS.sub(lambda token: _capital(token[0], mixed), text) for text in texts]


def _capital(token: str, mixed: set[str]) -> str:
    return f"{{{token.lower()}_{{999}}}}" if token in mixed else token


def _solution_set(text: str) -> Any:
    """The set of reals described by inequalities in one variable, or an interval or union of intervals; else None.

    Several inequalities hold together if they can (x > 1, x < 2), and are alternatives if they cannot (x < 1, x > 2).
    """
    items = collection(text).items
    if not any(sign in text for sign in _RELATIONS):
        found = parsed(text)
        return found if isinstance(found, sympy.Interval | sympy.Union) else None
    relations = [parsed(item) for item in items]
    if not all(isinstance(one, _INEQUALITIES) for one in relations):
        return None
    if len({symbol for one in relations for symbol in one.free_symbols}) != 1:
        return None
    try:
        found = [one.as_set() for one in relations]
    except (NotImplementedError, TypeError, ValueError, AttributeError):
        return None
    together = sympy.Intersection(*found)
    return together if together is not sympy.S.EmptySet else sympy.Union(*found)


def _with_imaginary_unit(*values: Any) -> list[Any]:
    """If i is the only letter on both sides, replace it by the imaginary unit; the parser leaves it a symbol."""
    letters = {symbol for value in values for symbol in value.free_symbols}
    if {symbol.name for symbol in letters} != {"i"}:
        return list(values)
    return [value.subs({symbol: sympy.I for symbol in letters}) for value in values]


def _is_expression(value: Any) -> bool:
    return isinstance(value, sympy.Expr) and not isinstance(value, sympy.MatrixExpr)


def _equal_numbers(gold: Any, answer: Any) -> bool | None:
    """Equality of numbers without symbols, to 15 significant digits; decimals as in
    `vopd.evaluation.grading.numbers.close_enough`. None for anything else."""
    if not (_is_expression(gold) and _is_expression(answer)) or gold.free_symbols or answer.free_symbols:
        return None
    try:
        gold, answer = gold.doit(), answer.doit()
        if any(value.has(sympy.zoo, sympy.nan) for value in (gold, answer)):
            return False  # 12:00 and 1:00 both divide by zero
        if gold == answer:
            return True
        size = abs(sympy.N(gold, _DIGITS))
        gap = abs(sympy.N(gold - answer, _DIGITS))
        if not (size.is_Float or size.is_Integer) or not (gap.is_Float or gap.is_Integer):
            return None
    except (ArithmeticError, TypeError, ValueError, AttributeError):
        return None
    if gold.has(sympy.Float) or answer.has(sympy.Float):
        return bool(gap <= min(sympy.Float("5e-7"), size * sympy.Float("1e-4")))
    return bool(gap <= size * sympy.Float("1e-15"))


def _agree_at_points(gold: Any, answer: Any) -> bool:
    """Check of a "yes": expressions whose relative difference exceeds 1e-6 at a random point are not equal."""
    if not (_is_expression(gold) and _is_expression(answer)) or gold.free_symbols != answer.free_symbols:
        return True
    draw = random.Random(0)
    for _ in range(_POINTS):
        point = {symbol: sympy.Rational(draw.randint(11, 99), 37) for symbol in sorted(gold.free_symbols, key=str)}
        try:
            one, other = complex(gold.subs(point).doit()), complex(answer.subs(point).doit())
        except (ArithmeticError, TypeError, ValueError, AttributeError):
            continue
        if abs(one - other) > 1e-6 * max(abs(one), abs(other)):
            return False
    return True

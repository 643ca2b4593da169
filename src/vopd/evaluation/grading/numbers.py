"""Exact value of a plain number in LaTeX or text: integers, decimals, fractions, powers, factorials, and sums of them.

The fast path of grading: parses the text into a ``Fraction`` without sympy, in microseconds, and returns None for
everything else: symbols, roots, functions, and very large numbers.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import NamedTuple

# The group is empty for a character that belongs to no number.
_TOKEN = re.compile(r"(\d+(?:\.\d*)?|\.\d+|\\frac|\\cdot|\\times|\\div|[-+*/^!(){}])|\S")
_THOUSANDS = re.compile(r"[+-]?\s*\d{1,3}(?:,\d{3})+(?:\.\d+)?|[+-]?\s*\d{1,3}(?: \d{3})+(?:\.\d+)?")
_MIXED = re.compile(r"([+-]?)\s*(\d+)\s+(\d+)\s*/\s*(\d+)")
_SPLIT_DIGITS = re.compile(r"[\d.]\s+[\d.]")
_MAX_BITS = 4096
_DECIMALS = Fraction(5, 10**7)
_RELATIVE = Fraction(1, 10**4)


class Number(NamedTuple):
    """An exact value, and whether it was written as a decimal (and so may be rounded)."""

    value: Fraction
    decimal: bool


class _Unreadable(Exception):
    pass


def read_number(text: str) -> Number | None:
    """The value of a normalized answer, or None if it is not a plain number."""
    text = text.strip()
    if not text or len(text) > 300:
        return None
    mixed = _MIXED.fullmatch(text)
    if mixed and int(mixed[4]):
        size = int(mixed[2]) + Fraction(int(mixed[3]), int(mixed[4]))
        return Number(-size if mixed[1] == "-" else size, False)
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "").replace(" ", "")
    tokens = _TOKEN.findall(text)
    if "" in tokens or _SPLIT_DIGITS.search(text):
        return None
    # Reversed, so that pop() returns the next token; the empty one marks the end.
    stack = ["", *reversed(tokens)]
    try:
        value = _sum(stack)
        return Number(value, any("." in token for token in tokens)) if stack == [""] else None
    except (_Unreadable, ZeroDivisionError, RecursionError):
        return None


def close_enough(value: Number, gold: Number) -> bool:
    """Equality of two plain numbers: exact, unless one is written as a decimal.

    A decimal may be rounded: |a - b| <= 5e-7 (six decimals), and for small reference answers also <= 1e-4 |gold|, so
    that 0 or 2e-10 never equals 1e-10.
    """
    if not (value.decimal or gold.decimal):
        return value.value == gold.value
    return abs(value.value - gold.value) <= min(_DECIMALS, _RELATIVE * abs(gold.value))


# Recursive descent: every function pops the tokens that it reads from the stack.


def _sum(tokens: list[str]) -> Fraction:
    value = _product(tokens)
    while tokens[-1] in ("+", "-"):
        value = value + _product(tokens) if tokens.pop() == "+" else value - _product(tokens)
    return value


def _product(tokens: list[str]) -> Fraction:
    value = _signed(tokens)
    while (token := tokens[-1]) in ("*", "\\cdot", "\\times", "/", "\\div", "("):
        if token != "(":
            tokens.pop()
        factor = _signed(tokens)
        value = value / factor if token in ("/", "\\div") else value * factor
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
            raise _Unreadable
    return value


def _signed(tokens: list[str]) -> Fraction:
    if tokens[-1] in ("+", "-"):
        return _signed(tokens) if tokens.pop() == "+" else -_signed(tokens)
    return _power(tokens)


def _power(tokens: list[str]) -> Fraction:
    base = _atom(tokens)
    while tokens[-1] == "!":
        tokens.pop()
        if base.denominator != 1 or not 0 <= base <= 400:
            raise _Unreadable
        base = Fraction(math.factorial(int(base)))
    if tokens[-1] != "^":
        return base
    tokens.pop()
    exponent = _atom(tokens)
    bits = max(base.numerator.bit_length(), base.denominator.bit_length(), 1)
    if exponent.denominator != 1 or abs(exponent) * bits > _MAX_BITS:
        raise _Unreadable
    return base ** int(exponent)


def _atom(tokens: list[str]) -> Fraction:
    token = tokens.pop()
    if token == "\\frac":
        return _group(tokens) / _group(tokens)
    if token in ("(", "{"):
        value = _sum(tokens)
        if tokens.pop() != {"(": ")", "{": "}"}[token]:
            raise _Unreadable
        return value
    if not (token[:1].isdigit() or token[:1] == "."):
        raise _Unreadable
    value = Fraction(token)
    if tokens[-1] != "\\frac":
        return value
    # As an answer, 1\frac{1}{2} is one and a half, not a product.
    part = _atom(tokens)
    if "." in token or not 0 <= part < 1:
        raise _Unreadable
    return value + part


def _group(tokens: list[str]) -> Fraction:
    if tokens[-1] != "{":
        raise _Unreadable
    return _atom(tokens)

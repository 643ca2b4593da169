"""Exact value of a plain number in LaTeX or text: integers, decimals, fractions, powers, factorials and their
sums.

The fast path of grading. It reads the text into a ``Fraction`` without sympy, in microseconds, and gives up
(None) on everything else: symbols, roots, functions, numbers too large to be worth it.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import NamedTuple

# The group stays empty for a character that belongs to no number.
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
    """The value of a normalised answer, or None where it is not a plain number."""
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
    try:
        return _Reader(tokens).read()
    except (_Unreadable, ZeroDivisionError, RecursionError):
        return None


def close_enough(value: Number, gold: Number) -> bool:
    """Equality of two plain numbers: exact, unless one is written as a decimal.

    A decimal may be rounded: |a - b| <= 5e-7 (six decimals), and for small golds also <= 1e-4 |gold|, so that
    0 or 2e-10 never equals 1e-10.
    """
    if not (value.decimal or gold.decimal):
        return value.value == gold.value
    return abs(value.value - gold.value) <= min(_DECIMALS, _RELATIVE * abs(gold.value))


class _Reader:
    """Recursive descent over the tokens; every method consumes what it reads."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.at = 0
        self.decimal = False

    def read(self) -> Number:
        value = self.sum()
        if self.at != len(self.tokens):
            raise _Unreadable
        return Number(value, self.decimal)

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        token = self.peek()
        if not token or (expected and token != expected):
            raise _Unreadable
        self.at += 1
        return token

    def sum(self) -> Fraction:
        value = self.product()
        while self.peek() in ("+", "-"):
            value = value + self.product() if self.take() == "+" else value - self.product()
        return value

    def product(self) -> Fraction:
        value = self.signed()
        while True:
            token = self.peek()
            if token in ("*", "\\cdot", "\\times"):
                self.take()
                value *= self.signed()
            elif token in ("/", "\\div"):
                self.take()
                value /= self.signed()
            elif token == "(":
                value *= self.power()
            else:
                return value
            _check_size(value)

    def signed(self) -> Fraction:
        if self.peek() in ("+", "-"):
            return self.signed() if self.take() == "+" else -self.signed()
        return self.power()

    def power(self) -> Fraction:
        base = self.atom()
        while self.peek() == "!":
            self.take()
            base = _factorial(base)
        if self.peek() != "^":
            return base
        self.take()
        if self.peek() in ("+", "-"):
            raise _Unreadable
        return _power(base, self.atom())

    def atom(self) -> Fraction:
        token = self.take()
        if token == "\\frac":
            return self.group() / self.group()
        if token in ("(", "{"):
            return self.rest(")" if token == "(" else "}")
        if not (token[0].isdigit() or token[0] == "."):
            raise _Unreadable
        self.decimal = self.decimal or "." in token
        return self.mixed(token)

    def mixed(self, token: str) -> Fraction:
        value = Fraction(token + "0" if token.endswith(".") else token)
        if self.peek() != "\\frac":
            return value
        # 1\frac{1}{2} is one and a half wherever it is an answer, never a product.
        self.take()
        part = self.group() / self.group()
        if "." in token or not 0 <= part < 1:
            raise _Unreadable
        return value + part

    def group(self) -> Fraction:
        self.take("{")
        return self.rest("}")

    def rest(self, closing: str) -> Fraction:
        """What stands in a bracket that is open."""
        value = self.sum()
        self.take(closing)
        return value


def _check_size(value: Fraction) -> None:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
        raise _Unreadable


def _factorial(value: Fraction) -> Fraction:
    if value.denominator != 1 or not 0 <= value <= 400:
        raise _Unreadable
    return Fraction(math.factorial(int(value)))


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    bits = max(base.numerator.bit_length(), base.denominator.bit_length(), 1)
    if exponent.denominator != 1 or abs(exponent) * bits > _MAX_BITS:
        raise _Unreadable
    return base ** int(exponent)

"""Compare two normalized answers by their structure: sets, tuples, intervals, named values, text, units, bases.

These rules decide what a computer algebra system gets wrong because it flattens notation ((1, 2) is not {1, 2}; 11 in
base 2 is not 11 in base 3; x = 1 and y = 2 swapped). They leave single expressions, the leaves, to a function of the
caller: exact arithmetic in the fast path, math-verify in a worker.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from .latex import squeezed
from .numbers import Number, close_enough, read_number
from .units import conflicting, split_unit

Leaf = Callable[[str, str], bool | None]
"""``leaf(gold, answer)``: whether two single expressions are equal; None if it cannot decide."""

_OPEN, _CLOSE = "([{", ")]}"
_EMPTY_SETS = {r"\emptyset", r"\{\}"}
_NAME = (
    r"(?:\\?[A-Za-z]+(?:_\{[^{}]*\}|_[A-Za-z0-9])?'*(?:\([^()=]*\))?|\|[A-Z]+\||\\text\{[^{}]*\}"
    r"|\\(?:overline|angle|triangle|vec|widehat)\s*\{?\s*[A-Za-z]+\}?)"
)
_NAMES = re.compile(
    rf"\(\s*{_NAME}(?:\s*,\s*{_NAME})*\s*\)|{_NAME}(?:\s*:\s*{_NAME})*|\\frac\s*\{{{_NAME}\}}\s*\{{{_NAME}\}}"
)
_BASE = re.compile(r"\(?([0-9A-Fa-f]+)\)?_\{(\d+)\}")
_TEXT = re.compile(r"(?:\\text\{[^{}]*\}[\s.]*)+")
_PLAIN_WORDS = re.compile(r"[A-Za-z][A-Za-z' .-]*|[A-Za-z]{3,}[ -][A-Za-z0-9' .-]*")
_INEQUALITY = re.compile(r"[<>]|\\(?:leq|geq|neq)(?![A-Za-z])")
_DECIMAL_COMMA = re.compile(r"-?\d+,\d+")
# In a reference answer only these are decimals: 1,2 is the list of 1 and 2.
_GOLD_COMMA = re.compile(r"-?0,\d+|-?\d+,\d\d")
_COMMA_NUMBER = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_CLOCK = re.compile(r"\d{1,2}:[0-5]\d")
_MAX_ITEMS = 60


class Collection(NamedTuple):
    """Items between two brackets; a bare list, ``1, 2``, has none."""

    opening: str
    closing: str
    items: list[str]

    @property
    def ordered(self) -> bool:
        """Whether the order of the items matters."""
        return self.opening in ("(", "[")

    @property
    def interval(self) -> bool:
        """Two items with a square bracket on either side."""
        return len(self.items) == 2 and (self.opening == "[" or self.closing == "]")


def same(gold: str, answer: str, leaf: Leaf) -> bool | None:
    """Equality of two normalized answers; None if the leaves cannot decide."""
    if squeezed(gold) == squeezed(answer):
        return True
    gold, gold_unit = split_unit(gold)
    answer, answer_unit = split_unit(answer)
    if conflicting(gold_unit, answer_unit):
        return False
    if squeezed(gold) == squeezed(answer):
        return True
    for decide in (_numbers, _unlike, _bases, _texts, _named, _collections):
        verdict = decide(gold, answer, leaf)
        if verdict is not None:
            return verdict.equal
    return leaf(gold, answer)


def plainly_readable(gold: str) -> bool:
    """Whether a reference answer is readable without a parser: numbers, words, and collections of them."""
    gold = split_unit(gold)[0].removesuffix("%").strip()
    if read_number(gold) or base_numeral(gold) or words(gold):
        return True
    group = collection(gold)
    return len(group.items) > 1 and all(read_number(item) or words(item) for item in group.items)


class _Decision(NamedTuple):
    equal: bool | None


_WRONG, _RIGHT = _Decision(False), _Decision(True)


def _numbers(gold: str, answer: str, leaf: Leaf) -> _Decision | None:
    """Plain numbers, percentages, and numbers whose comma could also be a list's."""
    gold_number, answer_number = (read_number(text.removesuffix("%")) for text in (gold, answer))
    if gold_number and gold_number.decimal and _DECIMAL_COMMA.fullmatch(answer):
        answer_number = read_number(answer.replace(",", "."))
    if answer_number and answer_number.decimal and _GOLD_COMMA.fullmatch(gold):
        gold_number = read_number(gold.replace(",", "."))
    if gold_number is None or answer_number is None:
        return None
    candidates = [(answer_number, gold_number)]
    if gold.endswith("%") != answer.endswith("%"):
        candidates.append((_share(answer, answer_number), _share(gold, gold_number)))
    if any(close_enough(*pair) for pair in candidates):
        return _RIGHT
    ambiguous = _COMMA_NUMBER.fullmatch(gold) or _COMMA_NUMBER.fullmatch(answer)
    return None if ambiguous else _WRONG


def _share(text: str, number: Number) -> Number:
    return number._replace(value=number.value / 100) if text.endswith("%") else number


def base_numeral(text: str) -> tuple[str, str] | None:
    """Digits and base of a numeral such as ``1A_{16}``."""
    match = _BASE.fullmatch(squeezed(text))
    return (match[1].lower(), match[2]) if match else None


def _unlike(gold: str, answer: str, leaf: Leaf) -> _Decision | None:
    """12:30 is a time of day, not twice 6:15; and a number never equals an inequality, although the algebra may drop
    the relation."""
    if _CLOCK.fullmatch(squeezed(gold)) and _CLOCK.fullmatch(squeezed(answer)):
        return _WRONG
    pairs = ((gold, answer), (answer, gold))
    return _WRONG if any(_whole(one) and read_number(other) is not None for one, other in pairs) else None


def _bases(gold: str, answer: str, leaf: Leaf) -> _Decision | None:
    """Numerals with a base: the same digits in the same base; a base missing on one side is assumed to be the same."""
    one, other = base_numeral(gold), base_numeral(answer)
    if one and other:
        return _Decision(one == other)
    if one or other:
        digits, plain = (one[0], answer) if one else (other[0] if other else "", gold)
        return _Decision(squeezed(plain).lower() == digits)
    return None


def words(text: str) -> str | None:
    """The letters of an answer in words (``\\text{...}`` or plain), None for anything else."""
    if _TEXT.fullmatch(text):
        content = " ".join(re.findall(r"\\text\{([^{}]*)\}", text))
    elif _PLAIN_WORDS.fullmatch(text):
        content = text
    else:
        return None
    content = re.sub(r"[^0-9A-Za-z+-]", "", re.sub(r"^\s*(?:the|an?)\s+(?=\w)", "", content, flags=re.IGNORECASE))
    return content.lower() if len(content) > 1 else content


def _texts(gold: str, answer: str, leaf: Leaf) -> _Decision | None:
    gold_words, answer_words = words(gold), words(answer)
    if gold_words is None or answer_words is None:
        return None
    if "\\text" not in gold and "\\text" not in answer and min(len(gold_words), len(answer_words)) < 4:
        return None  # short plain words may be products of symbols
    return _Decision(gold_words == answer_words)


def split_name(text: str) -> tuple[str, str] | None:
    """``x = 5`` as (x, 5), and ``x = 2 + 3 = 5`` too; None if the value has no name."""
    parts = [part.strip() for part in _equals(text)]
    for part in parts[:-1]:
        if _NAMES.fullmatch(part):
            return squeezed(part), parts[-1]
    return None


def _equals(text: str) -> list[str]:
    """Parts between the equality signs (= and membership); an approximation after a value is dropped."""
    if _INEQUALITY.search(text):
        return [text]
    approximate = re.split(r"\\(?:approx|simeq|sim)(?![A-Za-z])", text)
    if len(approximate) > 1:
        head = approximate[0].strip()
        text = head if "=" in head or not _NAMES.fullmatch(head) else head + "=" + approximate[-1]
    return split_top(re.sub(r"\\in(?![A-Za-z])|:=|\\equiv(?![A-Za-z])", "=", text), "=")


def _named(gold: str, answer: str, leaf: Leaf) -> _Decision | None:
    if _several_names(gold):
        return None
    gold_parts, answer_parts = ([part.strip() for part in _equals(text)] for text in (gold, answer))
    gold_name, answer_name = split_name(gold), split_name(answer)
    if gold_name and answer_name:
        return _Decision(same(gold_name[1], answer_name[1], leaf)) if gold_name[0] == answer_name[0] else None
    if gold_name and len(answer_parts) == 1:
        return _Decision(same(gold_name[1], answer_parts[0], leaf))
    if len(gold_parts) > 1 and len(answer_parts) == 1 and not _whole(answer):
        return _WRONG  # an equation is not a value, although the algebra would use its right-hand side
    if len(gold_parts) == 1 and len(answer_parts) > 1 and not _several_names(answer):
        value = answer_parts[-1]
        equation = value == "0" and not answer_name
        return _WRONG if equation else _Decision(same(gold_parts[0], value, leaf))
    if len(gold_parts) == len(answer_parts) == 1 and (gold_parts[0], answer_parts[0]) != (gold, answer):
        return _Decision(same(gold_parts[0], answer_parts[0], leaf))
    return None


def _several_names(text: str) -> bool:
    """Whether a list names several values, as ``x = 1, y = 2`` does and ``n = 1, 2, 3`` does not."""
    return any("=" in part for part in split_top(text, ",;")[1:])


def _depths(text: str) -> Iterator[tuple[int, str, int]]:
    """Position, character and depth after it (any bracket closes any other, as in half-open intervals); a backslash and
    the sign after it are one character."""
    depth = 0
    for match in re.finditer(r"\\(?![{}]).?|.", text, re.DOTALL):
        depth += (match[0] in _OPEN) - (match[0] in _CLOSE)
        yield match.start(), match[0], depth


def split_top(text: str, separators: str) -> list[str]:
    """Split at separators outside all brackets."""
    cuts = [position for position, character, depth in _depths(text) if depth == 0 and character in separators]
    return [text[start + 1 : end] for start, end in zip([-1, *cuts], [*cuts, len(text)])]


def collection(text: str) -> Collection:
    """The outer brackets of an answer and its items. A scalar is a bare list of one."""
    text = text.strip()
    if text in _EMPTY_SETS:
        return Collection("{", "}", [])
    for opening, closing in (("\\{", "\\}"), ("(", ")"), ("[", "]"), ("(", "]"), ("[", ")")):
        inner = text[len(opening) : -len(closing)]
        if text.startswith(opening) and text.endswith(closing) and inner.strip() and _one_group(text):
            items = _items(inner)
            if len(items) > 1 or opening == "\\{":
                return Collection(opening[-1], closing[-1], items)
            return collection(inner) if (opening, closing) == ("(", ")") else Collection("", "", [text])
    return Collection("", "", _items(text))


def _one_group(text: str) -> bool:
    """Whether the first bracket closes only at the end."""
    places = list(_depths(text))
    closed = [position for position, character, depth in places if depth == 0 and character in _CLOSE]
    return places[-1][2] == 0 and all(position == len(text) - 1 for position in closed)


def _items(text: str) -> list[str]:
    groups = split_top(text, ";")
    if len(groups) > 1 and any(len(split_top(group, ",")) > 1 for group in groups):
        # p = 5, q = 2; p = 7, q = 2 is a list of pairs.
        return [f"({_values(group)})" for group in groups if group.strip()]
    items: list[str] = []
    for part in split_top(text, ",;"):
        if part.strip():
            items.extend(_plus_minus(part.strip()))
    return items or [text]


def _values(group: str) -> str:
    named = [(split_name(item), item) for item in split_top(group, ",")]
    return ",".join(name[1] if name else item for name, item in named)


def _plus_minus(item: str) -> list[str]:
    """``a \\pm b`` as its two values."""
    if item.count("\\pm") != 1 or "=" in item:
        return [item]
    return [re.sub(r"\\pm\s*", sign, item, count=1).strip().removeprefix("+") for sign in "+-"]


def _collections(gold: str, answer: str, leaf: Leaf) -> _Decision | None:
    first, second = collection(gold), collection(answer)
    if max(len(first.items), len(second.items)) > _MAX_ITEMS:
        return None
    if not (first.opening or second.opening) and len(first.items) == len(second.items) == 1:
        stripped = first.items[0], second.items[0]
        return _Decision(same(*stripped, leaf)) if stripped != (gold.strip(), answer.strip()) else None
    if any(_whole(item) for item in (*first.items, *second.items)):
        return None
    for scalar, other in ((gold, second), (answer, first)):
        if len(other.items) > 1 and read_number(scalar) is not None:
            return _WRONG
    if _needs_algebra(first, second) or _needs_algebra(second, first):
        return None
    return _Decision(_compare_collections(_grouped(first), _grouped(second), leaf))


def _whole(item: str) -> bool:
    """Whether an item is a relation, which only makes sense together with the rest."""
    return bool(_INEQUALITY.search(item))


def _needs_algebra(one: Collection, other: Collection) -> bool:
    """A single expression against a collection: it may be a union, a matrix or a product of vectors."""
    return not one.opening and len(one.items) == 1 and (len(other.items) > 1 or other.ordered)


def _grouped(group: Collection) -> Collection:
    """Without names: ``x = 1, y = 2`` as the ordered 1, 2 and ``n = 1, 2`` as 1, 2."""
    names = [split_name(item) for item in group.items]
    if all(names) and len({name[0] for name in names if name}) == len(names) > 1:
        return Collection("=", "=", [name[0] + "=" + name[1] for name in names if name])
    return group._replace(items=[name[1] if name else item for name, item in zip(names, group.items, strict=True)])


def _compare_collections(gold: Collection, answer: Collection, leaf: Leaf) -> bool | None:
    if "=" in (gold.opening, answer.opening):
        return _compare_named(gold, answer, leaf)
    kinds = {gold.opening, answer.opening}
    if gold.interval or answer.interval:
        if (gold.opening, gold.closing) != (answer.opening, answer.closing):
            return False
    elif kinds == {"(", "{"} or kinds == {"[", "{"}:
        return False
    if gold.ordered or answer.ordered:
        return _in_order(gold.items, answer.items, leaf)
    return _in_any_order(gold.items, answer.items, leaf)


def _compare_named(gold: Collection, answer: Collection, leaf: Leaf) -> bool | None:
    """Values with names: compared by name if both have names, else in the order of the names."""
    if gold.opening == answer.opening:
        return _in_order(sorted(gold.items), sorted(answer.items), leaf)
    if "{" in (gold.opening, answer.opening):
        return False
    strip = [[item.split("=", 1)[-1] for item in group.items] for group in (gold, answer)]
    return _in_order(strip[0], strip[1], leaf)


def _in_order(gold: list[str], answer: list[str], leaf: Leaf) -> bool | None:
    if len(gold) != len(answer):
        return False
    return _all(same(one, other, leaf) for one, other in zip(gold, answer, strict=True))


def _in_any_order(gold: list[str], answer: list[str], leaf: Leaf) -> bool | None:
    """Whether every item of each side equals one of the other; repeated items count once, as in a set."""
    return _all(_any(same(one, other, leaf) for other in answer) for one in gold) and _all(
        _any(same(one, other, leaf) for one in gold) for other in answer
    )


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    return _decided(verdicts, False)


def _any(verdicts: Iterable[bool | None]) -> bool | None:
    return _decided(verdicts, True)


def _decided(verdicts: Iterable[bool | None], by: bool) -> bool | None:
    """`by` if one verdict is `by`, else None if one is unknown, else the opposite."""
    unknown = False
    for verdict in verdicts:
        if verdict is by:
            return by
        unknown = unknown or verdict is None
    return None if unknown else not by

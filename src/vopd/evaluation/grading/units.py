"""Units at the end of an answer: removed before comparing, and compared if both sides have a known one."""

from __future__ import annotations

import re

# Names of each unit; the first one is used to compare answers.
_NAMES = (
    "mm millimeter millimetre", "cm centimeter centimetre", "m meter metre", "km kilometer kilometre", "in inch inche",
    "ft foot feet", "yd yard", "mi mile", "mg milligram", "g gram", "kg kilogram", "lb pound", "oz ounce",
    "ml milliliter millilitre", "l liter litre", "s sec second", "min minute", "h hr hour", "year yr", "km/h kmh kph",
    "degree deg", "radian rad", "k kelvin", "j joule", "n newton", "w watt", "v volt", "pa pascal", "dollar usd",
    "mol", "day", "week", "month", "am", "pm", "mph", "north", "south", "east", "west", "ev", "kj", "kw", "hz", "cent",
)  # fmt: skip
_UNITS = {name: names.split()[0] for names in _NAMES for name in names.split()}
# Not units but factors: 3 million is not 3.
_SCALES = {"thousand", "million", "billion", "trillion", "dozen"}
_POWER = r"(?:\s*\^\s*\{?\s*(-?\d+)\s*\}?)?"
_TEXT_UNIT = re.compile(
    r"(?P<value>.*[^\s\\,({\[=<>+*/-])\s*(?P<unit>(?:\\text\{[^{}]*\}\s*(?:\^\{-?\d+\}|/|\\cdot)?\s*)+)\.?",
    re.DOTALL,
)
_PLAIN_UNIT = re.compile(
    r"(?P<value>.*[\d.})%])\s+(?P<unit>[A-Za-z]{2,}(?:[ /.]+[A-Za-z]+\.?)*" + _POWER + ")", re.DOTALL
)
_GLUED_UNIT = re.compile(
    r"(?P<value>[-+]?[\d.,]+)(?P<unit>[ckm]?m(?=\^)|mm|cm|km|kg|mg|ml|mph|am|pm|ft|lb|hours?|minutes?|seconds?)"
    + _POWER
)


def split_unit(text: str) -> tuple[str, str | None]:
    """An answer without the unit at its end, and the unit in normalized spelling (None without one)."""
    text = text.strip()
    for pattern in (_TEXT_UNIT, _PLAIN_UNIT, _GLUED_UNIT):
        match = pattern.fullmatch(text)
        if match and re.search(r"\d", match["value"]) and not _scales(match["unit"]):
            return match["value"].strip(), _spelling(match["unit"])
    return text, None


def conflicting(one: str | None, other: str | None) -> bool:
    """Whether two units are both known and not the same."""
    return one is not None and other is not None and one != other and one.startswith("!") and other.startswith("!")


def _scales(unit: str) -> bool:
    return any(word in _SCALES for word in re.findall(r"[A-Za-z]+", unit.lower()))


def _spelling(unit: str) -> str:
    """``square centimeters`` and ``cm^2`` as ``!cm^2``; the mark means that every word is known."""
    power = re.search(r"\^\s*\{?\s*(-?\d+)", unit)
    exponent = power[1] if power else "1"
    plain = re.sub(r"\\text|\^\s*\{?\s*-?\d+\s*\}?", " ", unit).lower().replace("p.m", "pm").replace("a.m", "am")
    names = re.findall(r"[a-z$/]+", plain)
    if {"square", "sq"} & set(names):
        exponent = "2"
    if {"cubic", "cu"} & set(names):
        exponent = "3"
    names = [name for name in names if name not in ("square", "sq", "cubic", "cu", "of", "the")]
    known = [
        _UNITS.get(name) or _UNITS.get(name.removesuffix("s")) or _UNITS.get(name.removesuffix("es")) for name in names
    ]
    if not known or None in known:
        return " ".join(names)
    return "!" + " ".join(str(name) for name in known) + "^" + exponent

"""The options of a multiple-choice question, and which of them is right, however a dataset writes both.

What can be read in two ways is refused: a wrong reference answer looks like a bad model.

- Labels at the beginning of the options ("A. 5", "(b) 5", "1) 5", "ii. 5") are taken off if all options carry
  consecutive ones; "E. coli", "S. aureus" stay whole.
- A letter or a label is the option with that label. In a list without labels it must not be the text of another option.
- A whole number is a label where the labels are numbers, else it counts the options from 0. Options in columns of their
  own, A, B, C, D, are counted from 0 by some datasets and from 1 by others, so a number is refused there, as is a
  number written as text.
- Anything else is the text of an option, with its label or without.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase
from typing import Any

from vopd.errors import DataError, counted

LETTERS = ascii_uppercase[:10]
"""The letters that the grader reads, so the most options that a question may have."""
# Columns whose values are letters, also where one is the text of another option.
_LETTER_COLUMNS = ("answer_key", "letter", "answer_letter")
_ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x")
_SEQUENCES = (
    tuple(LETTERS), tuple(ascii_lowercase[:10]), tuple(str(number) for number in range(1, 11)),
    tuple(str(number) for number in range(10)), _ROMAN, tuple(number.upper() for number in _ROMAN),
)  # fmt: skip
# A label and what follows it. A dot or colon counts only before a blank: "1.5" and "1:30" are numbers.
_CARRIED = re.compile(
    r"\s*(?:[(\[（]\s*(\w{1,4})\s*[)\]）][.:]?|(\w{1,4})(?:[)\]）、．：]|[.:](?=\s)))\s*(\S.*)", re.DOTALL
)


@dataclass(frozen=True)
class Options:
    """Options of one question, in their order.

    `texts` are shown, `written` is how the data has them; `labels` are in upper case; `labelled` says that the data
    gives the labels, and `counted` that a whole number may count the options from 0.
    """

    texts: list[str]
    written: list[Any]
    labels: list[str]
    labelled: bool
    counted: bool = True

    def spellings(self, place: int) -> set[str]:
        """The text of an option as the data may repeat it: without a label, as written, with its label."""
        text, label = self.texts[place], self.labels[place]
        labelled = {f"{opened}{label}{shut} {text}" for opened, shut in (("", "."), ("", ")"), ("(", ")"))}
        return {text, str(self.written[place]).strip(), *labelled}


def read_options(found: Any, where: str, *, in_columns: bool = False) -> Options:
    """Options from a list of texts or of ``{"label": ..., "text": ...}``, from ``{"text": [...], "label": [...]}`` or
    ``{"A": ..., "B": ...}``, or from either as JSON or Python text; `where` names the row in errors.

    Raises:
        DataError: these are no options, one is empty, or there are too few, too many, or labels for others.
    """
    written, given = _parts(_parsed(found, where), where)
    for position, option in enumerate(written):
        if not isinstance(option, str | int | float) or not str(option).strip():
            raise DataError(f"{where}: option {position + 1} is {_shown(option)}; give each option as text")
    if not 2 <= len(written) <= len(LETTERS) or (given and len(given) != len(written)):
        raise DataError(
            f"{where} has {counted(len(written), 'option')} and {counted(len(given or written), 'label')}; give 2 to "
            f"{len(LETTERS)} options with one label each"
        )
    texts = [str(option).strip() for option in written]
    labels = [_bare(str(label)) for label in given]
    if len(set(labels)) < len(labels):
        raise DataError(f"{where} has two options with the same label: {', '.join(map(str, given))}")
    carried, rest = _carried(texts)
    if carried and labels in ([], carried):
        labels, texts = carried, rest
    letters = list(LETTERS[: len(texts)])
    return Options(texts, written, labels or letters, labelled=bool(labels), counted=not in_columns)


def right_letter(named: Mapping[str, Any], options: Options | None, where: str) -> str:
    """The letter of the right option, from the columns that name it; those that name one must agree.

    Args:
        named: values by column.
        options: None if they are part of the question, so that the answer can only be a letter.
        where: names the row in errors.

    Raises:
        DataError: no column names an option, or it is not clear which.
    """
    if not named:
        raise DataError(f"{where} has no answer; give the letter of the right option in the column answer")
    read = {name: _options_named(value, options, name in _LETTER_COLUMNS) for name, value in named.items()}
    read = {name: found for name, found in read.items() if found}
    name, value = next(iter(named.items()))
    if not read:
        fix = "a letter, or the text of an option"
        if options is None:
            fix = f"one of the letters {LETTERS[0]} to {LETTERS[-1]}, or add the column options"
        elif options.counted and not all(label.isdecimal() for label in options.labels):
            fix = f"{fix}; whole numbers count the options from 0"
        raise DataError(f"{where} has the {name} {_shown(value)}, which is none of its options; give {fix}")
    agreed = set.intersection(*read.values())
    if len(agreed) != 1:
        said = ", ".join(f"{name} {_shown(named[name])}" for name in read)
        fix = "make them agree" if not agreed else "add a column answer_letter with the right letter"
        raise DataError(f"{where} has {said}, which can be {'no' if not agreed else 'more than one'} option; {fix}")
    return LETTERS[agreed.pop()]


def _parsed(found: Any, where: str) -> Any:
    """JSON or a Python literal as what it says; the printed form of an array has no commas, and is refused."""
    if not isinstance(found, str):
        return found
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(found)
        except (ValueError, SyntaxError, RecursionError):
            continue
    raise DataError(f"{where} has options in one text that is not JSON: {_shown(found)}; give a list")


def _parts(found: Any, where: str) -> tuple[list[Any], list[Any]]:
    """Options and their labels, [] without labels. Arrow fills in keys that other rows have: they are no options."""
    if isinstance(found, Mapping) and isinstance(found.get("text"), list):
        return found["text"], found.get("label") or []
    if isinstance(found, Mapping):
        there = {label: option for label, option in found.items() if option is not None}
        return list(there.values()), list(there)
    if not isinstance(found, list):
        raise DataError(f"{where} has options of type {type(found).__name__}; give a list")
    if found and all(isinstance(option, Mapping) and "text" in option for option in found):
        labels = [option.get("label") for option in found]
        return [option["text"] for option in found], labels if None not in labels else []
    return found, []


def _carried(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Consecutive labels that all texts begin with, in upper case, and the rests; [] if there are none.

    Rests that are not all different need their labels: "(a) only", "(b) only".
    """
    matches = [_CARRIED.fullmatch(text) for text in texts]
    labels = tuple((match[1] or match[2]) if match else "" for match in matches)
    rests = [match[3].strip() for match in matches if match]
    if len(set(rests)) < len(texts) or not any(labels == names[: len(labels)] for names in _SEQUENCES):
        return [], []
    return [label.upper() for label in labels], rests


def _options_named(value: Any, options: Options | None, is_letter: bool) -> set[int]:
    """Positions of all options that a value may mean."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column with gaps is one of floats
    text = str(value).strip()
    if options is None:
        return {LETTERS.index(_bare(text))} if re.fullmatch(f"[{LETTERS}]", _bare(text)) else set()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _numbered(value, options)
    labels = {place for place, label in enumerate(options.labels) if label == _bare(text)}
    if labels and (options.labelled or is_letter):
        return labels
    return labels | {place for place in range(len(options.texts)) if text in options.spellings(place)}


def _numbered(number: float, options: Options) -> set[int]:
    if all(label.isdecimal() for label in options.labels):
        labels = {place for place, label in enumerate(options.labels) if label == str(number)}
        return labels if options.counted else set()
    equal = {place for place, option in enumerate(options.written) if not isinstance(option, str) and option == number}
    positions = range(len(options.texts)) if options.counted else ()
    return equal | {place for place in positions if place == number}


def _bare(label: str) -> str:
    """A label without brackets and dots, in upper case."""
    match = re.fullmatch(r"[(\[（]?\s*(\w+)\s*[)\]）.:、．：]*", label.strip())
    return (match[1] if match else label.strip()).upper()


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, str) else f"'{value}'"
    return text if len(text) <= 40 else text[:37] + "..."

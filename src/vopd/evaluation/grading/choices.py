"""The letter that a completion gives as its answer to a multiple-choice question.

Forms are tried from the most to the least explicit, and the first one found decides: the whole text, a box, JSON,
answer tags, a sentence that states the answer, an option that is named, bold, parentheses, a lone letter at the end.
Within a form the last occurrence counts. Weak forms count only if they name a single letter: a guess is not an answer.
The article "A" and the pronoun "I" count as letters only if punctuation or an ending shows it.
"""

from __future__ import annotations

import re
from functools import partial

from .extract import last_box

_L = r"(?P<letter>[A-Ja-j])"
# Decoration around a letter: markdown, brackets, quotes, LaTeX.
# Bounded, because several stand side by side: a long run of one character must not be tried in every split.
_OPEN = r"(?:[\s*_`\"'(\[{$]|\\text|\\textbf|\\mathbf|\\mathrm|\\boxed|\\\(){0,8}"
_SHUT = r"(?:[\s*_`\")\]}$:.,;!]|['-](?!\w)|$|\\\))"
_WHOLE = re.compile(rf"{_OPEN}(?:(?:option|choice|answer)\b[\s:]*)?{_OPEN}{_L}[\s*_`\"')\]}}$.,:;!]*", re.IGNORECASE)
_LABELLED = re.compile(rf"{_OPEN}(?P<letter>[A-J])(?:\*\*)?[).:](?!\w)[^\n]*", re.DOTALL)
_JSON = re.compile(
    r"[\"'](?:final_?answer|correct_?answer|answer|choice|option|answer_choice|prediction|letter)[\"']\s*:\s*[\"']?\s*\(?"
    r"(?P<letter>[A-Ja-j])(?![A-Za-z])",
    re.IGNORECASE,
)
_TAGS = re.compile(rf"<answer>{_OPEN}(?:option\s+)?{_OPEN}{_L}(?![A-Za-z])", re.IGNORECASE)
_IS = r"(?:\s*[:=]|\s+(?:is|was|must\s+be|should\s+be|would\s+be|will\s+be|has\s+to\s+be|seems\s+to\s+be))"
_NOUN = r"(?:answer|option|choice|selection|letter)"
_STATED = re.compile(
    rf"\b{_NOUN}(?:\s+(?:to\s+(?:this|the)\s+\w+|here|choice|letter|option))?[\s*_]{{0,6}}{_IS}[\s*_]{{0,6}}:?"
    rf"(?:{_OPEN}(?:(?:therefore|thus|clearly|definitely|most\s+likely|likely|indeed|the)\b\s*|not\s+\(?[A-J]\)?,?\s+but\s+(?:rather\s+)?)?{_OPEN}(?:option|choice|letter)?\b:?)?"
    rf"(?P<open>{_OPEN}){_L}(?={_SHUT})",
    re.IGNORECASE,
)
_CHOSEN = re.compile(
    rf"\b(?:choose|chose|pick|select|go\s+with|going\s+with)\s+(?:(?:the\s+)?(?:{_NOUN})\s+)?(?P<open>{_OPEN}){_L}(?={_SHUT})",
    re.IGNORECASE,
)
_CORRECT = re.compile(
    r"(?<![A-Za-z'])(?P<open>[*_(\[]*)(?P<letter>[A-J])(?=[*_)\]\s])[*_)\]]*\s+(?:is|seems|appears|must\s+be)\s+(?:to\s+be\s+)?"
    r"(?:clearly\s+|indeed\s+|therefore\s+|thus\s+)?(?:the\s+)?(?:most\s+)?(?:only\s+)?(?:correct|right|best|true|accurate|appropriate|answer)\b"
)
_NAMED = re.compile(rf"\b(?:option|choice)\s+(?P<open>{_OPEN}){_L}(?={_SHUT})", re.IGNORECASE)
_REJECTED = re.compile(
    r"[*_)\].\s]*(?:,[^,.]{0,60},\s*)?(?:is|are|was|does|do|can|could|cannot|can't|isn't|doesn't|fails?|must|would|has\s+been)\b[^.\n]{0,25}?"
    r"(?:not|n't|wrong|incorrect|false|fails?|ruled|eliminated|invalid|impossible|excluded|cannot)\b|"
    r"[*_)\].\s]*(?:fails?|cannot|can't|isn't|doesn't|:?\s*(?:incorrect|wrong|false))\b",
    re.IGNORECASE,
)
_BOLD = re.compile(
    r"(?:\*\*|__)\s*\(?(?P<letter>[A-J])(?:[).:][^*_\n]*|\s*)(?:\*\*|__)|\\textbf\{\(?(?P<tex>[A-J])\)?[^{}]*\}"
)
_PARENTHESISED = re.compile(r"\((?P<letter>[A-J])\)|\[(?P<square>[A-J])\]")
_PLAIN = re.compile(r"(?<![A-Za-z0-9'\\-])(?P<letter>[B-HJ]|[AI](?=\s*(?:[.,;:!)]|$|or\b|and\b)))(?![A-Za-z0-9'=+^_-])")
_RUNS = re.compile(r"([\s*_(\[{$])\1{2,}")
_FOLLOWS = re.compile(r"(?:because|since|as|which|due|for|with|and|is|was)\b|[A-Z(]")


def read_choice(text: str) -> str | None:
    """The upper-case letter that a text without thinking gives as its answer; None if it gives none."""
    text = _RUNS.sub(r"\1\1", text.strip())
    if whole := _WHOLE.fullmatch(text):
        return whole["letter"].upper()
    # Each returns the letter that the text gives in that form, or None.
    forms = (
        _boxed, partial(_last, _JSON), partial(_last, _TAGS), _stated, _named, partial(_only, _BOLD), _labelled,
        partial(_only, _PARENTHESISED), partial(_only, _PLAIN),
    )  # fmt: skip
    return next((letter for form in forms if (letter := form(text))), None)


def _boxed(text: str) -> str | None:
    """The letter of a box with ``B``, ``(B)``, ``\\text{B}``, ``B. 42 metres``, ``Option B``."""
    box = (last_box(text) or "").strip()
    match = _WHOLE.fullmatch(box) or _LABELLED.fullmatch(box)
    return match["letter"].upper() if match else None


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    """The letter of the last occurrence of a form."""
    found = [match["letter"].upper() for match in pattern.finditer(text)]
    return found[-1] if found else None


def _stated(text: str) -> str | None:
    """The letter of the last sentence that states the answer."""
    found = [match for pattern in (_STATED, _CHOSEN, _CORRECT) for match in pattern.finditer(text) if _is_letter(match)]
    return max(found, key=lambda match: match.start("letter"))["letter"].upper() if found else None


def _named(text: str) -> str | None:
    """The letter of the last "option X" that is not rejected."""
    found = [
        match for match in _NAMED.finditer(text) if _is_letter(match) and not _REJECTED.match(text, match.end("letter"))
    ]
    return found[-1]["letter"].upper() if found else None


def _is_letter(match: re.Match[str]) -> bool:
    """Whether the letter of a match is an option, and not the article "a", the pronoun "I" or part of an expression."""
    letter, opened = match["letter"], match["open"]
    rest = match.string[match.end("letter") :]
    if re.search(r"[*_(\[{\"'`$]", opened) and re.match(r"[\s*_)\]}\"'`$.:]", rest):
        return True
    ends = re.match(r"\s*(?:[.,;:!)\]*]|$|\n)", rest) is not None
    if letter.islower():
        return ends and not re.match(r"\s*,\s*\w", rest)
    if letter in "AI" and not ends:
        return bool(_FOLLOWS.match(rest.lstrip()))
    return True


def _labelled(text: str) -> str | None:
    """The letter of a text that opens with it, as in ``B. Because ...``, if no other line has another label."""
    labels = [match["letter"] for line in text.splitlines() if (match := _LABELLED.fullmatch(line.strip()))]
    opens = _LABELLED.match(text.strip())
    return opens["letter"] if opens and len(set(labels)) == 1 else None


def _only(pattern: re.Pattern[str], text: str) -> str | None:
    """The single letter that a weak form names in the last line, else in the whole text."""
    lines = [line for line in text.splitlines() if line.strip()]
    for part in (lines[-1] if lines else "", text):
        letters = {next(group for group in match.groups() if group) for match in pattern.finditer(part)}
        if letters:
            return letters.pop() if len(letters) == 1 else None
    return None


def gold_letter(gold: str) -> str | None:
    """The letter of a gold answer: ``B``, ``b``, ``(B)``, ``B.``."""
    match = re.fullmatch(rf"\s*[(\[]?\s*{_L}\s*[)\].:]?\s*", gold)
    return match["letter"].upper() if match else None

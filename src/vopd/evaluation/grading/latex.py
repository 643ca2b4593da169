"""Normalization of answers in LaTeX or plain text before they are compared.

``normalize`` changes only notation (fonts, spacing, delimiters, unicode, scientific notation). Everything that carries
a value or a structure (braces of sets, subscripts of bases, brackets of intervals) is kept for
`vopd.evaluation.grading.structure`. Every pattern is linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ",
        "π": r"\pi ", "α": r"\alpha ", "β": r"\beta ", "θ": r"\theta ", "ℝ": r"\mathbb{R}", "∞": r"\infty ",
        "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ",
        "∈": r"\in ", "≈": r"\approx ", "∅": r"\emptyset ", "°": r"^\circ ", "²": "^{2}", "³": "^{3}",
        "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "（": "(", "）": ")", "，": ",",
        "：": ":", "；": ";", "％": "%", "€": "", "£": "", "¥": "", "’": "'", "‘": "'", "“": '"', "”": '"',
        "\u00a0": " ", "\u2009": " ", "\u202f": " ",
    }
)  # fmt: skip
_SUBSCRIPT_DIGITS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_WORDS_FOR_BASES = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
    "ten": "10", "eleven": "11", "twelve": "12", "sixteen": "16",
}  # fmt: skip
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))
_TEXT = r"\\(?:text(?:bf|it|rm|normal|sf|tt)?|mbox|hbox|math(?:rm|bf|it|sf)|operatorname\*?|boldsymbol|bm)"


def _bracketed(match: re.Match[str]) -> str:
    """The content of a font command: letters, digits and function names lose the font, words stay text."""
    content = match[1].strip()
    if not content:
        return " "
    if content in ("and", "or", ", and", ", or", "and/or"):
        return " , "
    if _FUNCTION.fullmatch(content):
        return "\\" + content + " "
    if re.fullmatch(r"[A-Za-z]", content) and (match[0].startswith(_LETTER_FONTS) or content in "eid"):
        return content
    if re.fullmatch(r"[-+]?[\d.,/]+%?", content):
        return content
    counted = re.fullmatch(r"([-+]?\d[\d.,/]*)\s+([A-Za-z][^\d]*)", content)
    if counted:
        return counted[1] + r" \text{" + counted[2] + "}"
    if content.lower() in ("all real numbers", "all reals", "real numbers"):
        return r"\mathbb{R}"
    return r"\text{" + content + "}"


def _base(match: re.Match[str]) -> str:
    return "_{" + _WORDS_FOR_BASES.get(match[1].lower(), match[1]) + "}"


_DEGREES_IN_FUNCTION = (
    r"(\\(?:sin|cos|tan|sec|csc|cot)(?:\^\{?-?\d+\}?)?)\s*[{(]?\s*(\d+(?:\.\d+)?)\s*"
    r"(?:\^\s*\{?\s*\\circ\s*\}?|\\degree)\s*[)}]?"
)
_SIGNS = {
    "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "langle": "(", "rangle": ")",
    "varnothing": r"\emptyset", "dots": "...", "ldots": "...", "cdots": "...",
}  # fmt: skip
_LETTER_FONTS = (r"\mathbf", r"\mathit", r"\boldsymbol", r"\bm", r"\mathsf")
_FUNCTION = re.compile("(?:arc)?(?:sin|cos|tan)|(?:sin|cos|tan)h|sec|csc|cot|log|ln|exp|lim|max|min|gcd|det")
Replacement = str | Callable[[re.Match[str]], str]
_RULES: list[tuple[re.Pattern[str], Replacement]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|middle)\s*(?=[\[\](){}|\\/<>.])\.?(?![A-Za-z])", ""),
        (r"\\(?:big|Big|bigg|Bigg)[lrm]?(?![A-Za-z])", ""),
        (r"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits)(?![A-Za-z])", ""),
        (r"\\!\s*", ""),
        (r"\\(?:[,;:> ]|quad(?![A-Za-z])|qquad(?![A-Za-z])|hspace\*?\{[^{}]*\}|hfill(?![A-Za-z]))|~", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\s*\{\s*([,:])\s*\}\s*", r"\1"),
        (r"\\(?:phantom|label|tag)\{[^{}]*\}", ""),
        (r"\{\\rm\s+([^{}]*)\}", r"\\mathrm{\1}"),
        (r"_\{?\\text\{\s*([A-Za-z]+)\s*\}\}?", _base),
        (r"\\\$|\$", ""),
        (_TEXT + r"\s*\{([^{}]*)\}", _bracketed),
        (_DEGREES_IN_FUNCTION, r"\1(\2\\pi/180)"),
        (r"(?:\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![A-Za-z]))", r"\\degree "),
        (r"\\degree\s*(?:[CF](?![A-Za-z])|\\text\{[CF]\})?", ""),
        (r"\\lt(?:\s|(?![A-Za-z]))", "<"),
        (r"\\gt(?:\s|(?![A-Za-z]))", ">"),
        (r"\\leq?(?:slant|qslant)?(?![A-Za-z])|<=", r"\\leq "),
        (r"\\geq?(?:slant|qslant)?(?![A-Za-z])|>=", r"\\geq "),
        (r"\\neq?(?![A-Za-z])|(?<![\d)}])!=", r"\\neq "),
        (r"\\([lr](?:brace|brack|angle)|varnothing|[lc]?dots)(?![A-Za-z])", lambda match: _SIGNS[match[1]]),
        (r"\\?%|(?<=[\d}])\s*(?:percentage|percent|pct)\b|\\text\{\s*(?:percentage|percent|pct)\s*\}", "%"),
        (r"\*\*", "^"),
        (r"\*", r"\\cdot "),
        (r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi "),
        (r"(?<![\\A-Za-z])(?:infinity|infty|inf|oo)(?![A-Za-z])", r"\\infty "),
        (r"(?<![\\A-Za-z])(\d+(?:\.\d+)?)[eE]([+-]?\d+)(?![A-Za-z\d._])", r"\1 \\times 10^{\2}"),
        (r"(\\times\s*10\s*)\^\s*\(([^()]*)\)", r"\1^{\2}"),
        (r"(\^|_)\s*([+-]?\d+)(?!\s*[{\d])", r"\1{\2}"),
        (r"(\\frac)\s*(\d)(?=[\s\d{])", r"\1{\2}"),
        (r"(\\frac\s*\{[^{}]*\})\s*(\w)", r"\1{\2}"),
        (r"(\\sqrt)\s*([\dA-Za-z])", r"\1{\2}"),
        (r"(?<![A-Za-z\\])(?:,\s*)?\b(?:and|or)\b(?![A-Za-z])", " , "),
        (r"^\s*(?:\\approx|\\text\{[^{}]*(?:\bis|:|=)\s*\})", ""),
        (r"\s+", " "),
    )
]  # fmt: skip


_ROWS = re.compile(r"matrix|array|cases|aligned")
_ROW_END = "\ue000"
_SPACES = re.compile(r"(\\[A-Za-z]+ (?=[A-Za-z])|(?<=\d) (?=\d))| ")


def normalize(answer: str) -> str:
    """Normalize an answer: remove delimiters, fonts, spacing and sizing, and unify symbols."""
    text = _unwrap(answer.translate(_UNICODE))
    text = re.sub("(?<=[0-9A-Za-z)])([₀-₉]+)", lambda m: "_{" + m[1].translate(_SUBSCRIPT_DIGITS) + "}", text)
    if not _ROWS.search(text):
        # Text that was escaped once too often.
        text = re.sub(r"(?<!\\)\\\\(?=[A-Za-z])", r"\\", text)
    # A row ends with two backslashes; no rule below may read the second one as the start of a command.
    text = re.sub(r"\\\\(?:\[[^\]]{0,9}\])?", _ROW_END, text)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return _unwrap(text.replace(_ROW_END, r"\\ "))


def squeezed(text: str) -> str:
    """A normalized answer without meaningless spaces: answers that are equal here are the same text.

    A space is kept between two digits (1 2 is not 12) and between a command and the letter after it.
    """
    return _SPACES.sub(lambda match: match[1] or "", text)


def _unwrap(text: str) -> str:
    """Strip delimiters, sentence punctuation and one pair of redundant braces around the whole answer."""
    while True:
        before = text
        text = text.strip().rstrip(";").strip()
        if text.endswith((".", ",", ":")) and not text.endswith(".."):
            text = text[:-1].strip()
        for opening, closing in _DELIMITERS:
            inner = text[len(opening) : -len(closing)]
            wrapped = text.startswith(opening) and text.endswith(closing) and len(text) > 2 * len(opening)
            if wrapped and opening not in inner:
                text = inner
        if text.startswith("{") and text.endswith("}") and _is_one_group(text):
            text = text[1:-1]
        if text == before:
            return text


def _is_one_group(text: str) -> bool:
    """Whether the brace at the start closes at the end. Escaped braces do not count."""
    depth = 0
    for brace in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth == 0 and brace[0] == "}":
            return brace.end() == len(text)
    return False

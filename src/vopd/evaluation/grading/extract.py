"""Find the answer in a completion: strip the thinking, then read the last balanced ``\\boxed{}``.

Everything here is one linear pass over the text, so the cost of any completion, however malformed, is linear in its
length.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_THINK = re.compile(r"<(/?)(think|thinking|thought)>|\[(/?)THINK\]", re.IGNORECASE)
# A box, an escaped brace or line break (which must not count as a brace), or a brace. The line break is
# skipped only if no box follows: text that was escaped once too often has \\boxed.
_BRACES = re.compile(r"(\\(?:boxed|fbox)\s{0,20}\{)|\\\\(?!(?:boxed|fbox)\s{0,20}\{)|\\[{}]|([{}])")
# What may stand between the boxes of "\boxed{1} and \boxed{2}" inside one outer box.
_BETWEEN = re.compile(r"(?:[\s,;$&]|\\[,;:! ]|\\quad|\\qquad|\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|\\\(|\\\))*")
_FORMULA = re.compile(r"\$\$[^$]+\$\$|\$[^$]+\$|\\\([^\\]*(?:\\[^)(][^\\]*)*\\\)|\\\[[^\]]*\\\]")
_LONG_SENTENCE = 2000
_PREFIXED = re.compile(rf"[A-Za-z]+:?\s*(?:{_FORMULA.pattern})\.?")
_ENDING = re.compile(
    r"(?:\b(?:is|are|be|equals)|:|=)\s*(\$[^$]+\$|-?[^\sA-Za-z:=,.]+(?:[.,][^\sA-Za-z:=,.]+)*)\s*\.?\s*$"
)
_LONE = re.compile(r"[^\n]{1,200}")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_KNOWN_WORDS = {"sqrt", "pi", "sin", "cos", "tan", "log", "ln", "exp", "inf", "infinity", "frac", "abs"}


def tagged_answer(text: str) -> str | None:
    """The stripped text in the last ``<answer>`` tags of a completion, or None if there are none."""
    answer, start = None, text.find("<answer>")
    while start >= 0 and (end := text.find("</answer>", start)) >= 0:
        answer = text[start + len("<answer>") : end].strip()
        start = text.find("<answer>", end)
    return answer


def strip_thinking(text: str) -> str | None:
    """The part of a completion outside its thinking, or None if a thinking block was opened and never closed.

    A closing tag without an opening one belongs to a block that the chat template opened in the prompt: everything
    before it is thinking. None means that the completion has no answer, whatever comes before or inside the open block.
    """
    kept: list[str] = []
    start, depth = 0, 0
    for tag in _THINK.finditer(text):
        closes = bool(tag[1] or tag[3])
        if depth == 0:
            kept = [] if closes else [*kept, text[start : tag.start()]]
        if closes and depth <= 1:
            start = tag.end()
        depth = max(depth - 1, 0) if closes else depth + 1
    if depth:
        return None
    kept.append(text[start:])
    return "".join(kept)


class _Box(NamedTuple):
    start: int  # of the command
    inner: int  # of the content
    close: int  # position of the closing brace


def _boxes(text: str) -> list[_Box]:
    """The balanced ``\\boxed{}`` and ``\\fbox{}`` of a text that are not inside another one, in order."""
    opened: list[re.Match[str]] = []
    found: list[_Box] = []
    for token in _BRACES.finditer(text):
        if token[1] or token[2] == "{":
            opened.append(token)
        elif token[2] == "}" and opened and (box := opened.pop())[1]:
            while found and found[-1].start >= box.start():
                found.pop()
            found.append(_Box(*box.span(), token.start()))
    return found


def last_box(text: str) -> str | None:
    """Content of the last balanced box, or None. Of boxes inside a box: all, if only separators are between them, else
    the last one."""
    found = _boxes(text)
    return _without_inner(text[found[-1].inner : found[-1].close]) if found else None


def _without_inner(content: str, depth: int = 8) -> str:
    inner = _boxes(content)
    if not inner or depth == 0:
        return content
    # Boxes at the end with only separators between them belong together.
    first = len(inner) - 1
    while first and _BETWEEN.fullmatch(content[inner[first - 1].close + 1 : inner[first].start]):
        first -= 1
    return ", ".join(_without_inner(content[box.inner : box.close], depth - 1) for box in inner[first:])


def math_answer(text: str) -> tuple[str | None, bool]:
    """The answer in a text without thinking, and whether it was boxed.

    The answer is the last balanced box. Without any box, a text that is a single expression ("42", "$\\frac12$") is its
    own answer, and prose gives None, as in the paper, which grades only the last box.
    """
    box = last_box(text)
    if box is not None:
        return (_out_of_sentence(box.strip()) or None), True
    lone = text.strip()
    return (lone if _is_expression(lone) else None), False


def _out_of_sentence(content: str) -> str:
    """The expression in a box that contains a sentence: the one at its end ("the sum is 5."), else its last formula."""
    if len(content) > _LONG_SENTENCE:
        return content
    words = _WORD.findall(_FORMULA.sub(" ", content))
    if "\\text" in content or not words or (len(words) == 1 and not _PREFIXED.fullmatch(content)):
        return content
    ending = _ENDING.search(content)
    if ending:
        return ending[1]
    formulas = _FORMULA.findall(content)
    return formulas[-1] if formulas else content


def _is_expression(text: str) -> bool:
    if not _LONE.fullmatch(text) or not re.search(r"[0-9A-Za-z\\]", text) or "boxed" in text or "fbox" in text:
        return False
    words = _WORD.findall(re.sub(r"\\(?:text|mathrm|mbox)\s*\{[^{}]*\}", "", text))
    return all(word.lower() in _KNOWN_WORDS for word in words)

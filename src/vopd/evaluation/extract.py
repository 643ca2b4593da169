"""Where in a completion the answer stands: thinking stripped, then the last balanced ``\\boxed{}``.

Everything here is one linear pass over the text, so that no completion, however malformed, costs more than
its length.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_THINK = re.compile(r"<(/?)(think|thinking|thought)>|\[(/?)THINK\]", re.IGNORECASE)
# A box, an escaped brace or line break (which must not count as a brace), or a brace. The line break is
# skipped only where no box follows: text that went through one escaping too many writes \\boxed.
_BRACES = re.compile(r"(\\(?:boxed|fbox)\s*\{)|\\\\(?!(?:boxed|fbox)\s*\{)|\\[{}]|([{}])")
# What may stand between the boxes of "\boxed{1} and \boxed{2}" inside one outer box.
_BETWEEN = re.compile(
    r"(?:[\s,;$&]|\\[,;:! ]|\\quad|\\qquad|\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|\\\(|\\\))*"
)
_LONE = re.compile(r"[^\n]{1,200}")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_KNOWN_WORDS = {"sqrt", "pi", "sin", "cos", "tan", "log", "ln", "exp", "inf", "infinity", "frac", "abs"}


def strip_thinking(text: str) -> str | None:
    """The part of a completion outside its thinking, or None where a thinking block was opened and never
    closed.

    A close tag without an open one belongs to a block that the chat template opened in the prompt: all before
    it is thinking. None means that the completion never scores, whatever stands before or inside the open
    block.
    """
    kept: list[str] = []
    start, depth = 0, 0
    for tag in _THINK.finditer(text):
        closes = bool(tag.group(1) or tag.group(3))
        if closes:
            if depth <= 1:
                if depth == 0:
                    kept.clear()
                start = tag.end()
            depth = max(depth - 1, 0)
        else:
            if depth == 0:
                kept.append(text[start : tag.start()])
            depth += 1
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
    open_braces: list[tuple[int, int] | None] = []
    found: list[_Box] = []
    for token in _BRACES.finditer(text):
        if token.group(1):
            open_braces.append((token.start(), token.end()))
        elif token.group(2) == "{":
            open_braces.append(None)
        elif token.group(2) == "}" and open_braces:
            opened = open_braces.pop()
            if opened is not None:
                while found and found[-1].start >= opened[0]:
                    found.pop()
                found.append(_Box(*opened, token.start()))
    return found


def last_box(text: str) -> str | None:
    """Content of the last balanced box, or None. Of boxes inside a box: all, if only separators stand between
    them, else the last one."""
    found = _boxes(text)
    return _without_inner(text[found[-1].inner : found[-1].close]) if found else None


def _without_inner(content: str, depth: int = 8) -> str:
    inner = _boxes(content)
    if not inner or depth == 0:
        return content
    contents = [_without_inner(content[box.inner : box.close], depth - 1) for box in inner]
    edges = [0, *(box.close + 1 for box in inner)]
    between = [content[edge : box.start] for edge, box in zip(edges, inner, strict=False)] + [
        content[edges[-1] :]
    ]
    if len(inner) > 1 and all(_BETWEEN.fullmatch(text) for text in between):
        return ", ".join(contents)
    return contents[-1]


def math_answer(text: str) -> tuple[str | None, bool]:
    """The answer in a text without thinking, and whether it was boxed.

    The last balanced box. Without any box, only a text that is nothing but one expression ("42",
    "$\\frac12$") is read as its own answer: prose without a box gives None, as in the paper, which grades the
    last box alone.
    """
    box = last_box(text)
    if box is not None:
        return (box.strip() or None), True
    lone = text.strip()
    return (lone if _is_expression(lone) else None), False


def _is_expression(text: str) -> bool:
    if (
        not _LONE.fullmatch(text)
        or not re.search(r"[0-9A-Za-z\\]", text)
        or "boxed" in text
        or "fbox" in text
    ):
        return False
    words = [word for word in _WORD.findall(re.sub(r"\\(?:text|mathrm|mbox)\s*\{[^{}]*\}", "", text))]
    return all(word.lower() in _KNOWN_WORDS for word in words)

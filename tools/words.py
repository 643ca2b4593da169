"""Keeps phrases that read as translated out of documents, messages and docstrings; `make check` runs it.

    python tools/words.py              one line per fault; exit code 1 if there are any
    python tools/words.py --count      the number of faults per file
    python tools/words.py FILE ...     check these files only

Phrases are whole words in any case, and are found across the lines of a paragraph and of adjacent Python strings. In
Python only strings and comments are checked.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = ("*.md", "docs", "recipes", "examples", "src", "tools", "benchmarks")
SUFFIXES = {".md", ".py", ".toml", ".yaml", ".yml", ".ipynb"}

_COUNTED = "bits|bytes|columns|completions|ids|lines|problems|prompts|rows|steps|tokens"
_PER = "batch|chunk|completion|group|line|position|problem|prompt|rank|row|second|step|token"
BETTER = {
    "nats a token": "nats/token",
    "nats a unit": "nats per unit",
    rf"({_COUNTED}) a ({_PER})": r"\1 per \2",
    "(one|once) a (batch|chunk|line|position|problem|prompt|rank|row|step|token|vocabulary)": r"\1 per \2",
    r"(?<!\+.)1 (file|problem|process|prompt|row|sample|step|thread|token)(?:s|es)": r"1 \1",
    "which to take": "Which estimator should I use?",
    "of one's own": "your own ...",
    "data sets?": "dataset",
    "mend(|s|ed|ing)": "fix",
    "(?:talk it up|talked up)": "verdicts are computed from a fixed rule",
    "counts? nowhere": "has zero weight",
    "weigh(?:s|ed|ing)? (?:the )?(?:sampled )?tokens": "weight tokens",
    "the price of": "the cost of",
    "less opd": "difference from opd",
    "is one line that": "is a single line that",
    "crosses the wire": "request and response size",
    "surroundings": "environment",
    "pads with": "PAD",
    "(broke|breaks?|broken) off": "crashed, stopped or failed",
    "puts? aside": "ignored",
    "heed(|s|ed|ing)": "respects, follows",
    "gifts": "say what it is",
    "rooms": "space",
    "nobody": "say who, or use the passive",
    "by hand": "manually",
    "few bits": "4 or 8 bits, quantization",
    "(?:begun )?(?:anew|afresh)": "again, from scratch",
    "as it stands": "unchanged",
    "(go|goes|going|went|gone) on from": "resumes from",
    "(?:is|are|was|were) told (as|of|once|that)": "triggers a warning, is reported",
    "(?:is|was) looked at": "is checked, is read",
    "(?:brings along|brings about|brought along)": "includes, causes",
    "in the process(?! (?:that|of|group))": "in the training process, locally",
    r"([a-z]*(?:normal|token|optim|initial|quant|summar)i)s(e|ed|er|ers|es|ing|ation)": r"\1z\2",
}
"""Pattern of a phrase, and what to write instead, with the groups of the pattern."""

_GAP = r"""\s*["']?[\s#>]+(?:f["']|["'])?"""
_PHRASES = [
    (re.compile(rf"(?<![\w.,]){phrase.replace(' ', _GAP)}(?![\w-])", re.IGNORECASE), better)
    for phrase, better in BETTER.items()
]


def files(root: Path) -> list[Path]:
    """Documents, examples and sources below `root`, without this module, which holds the phrases."""
    found = {path for place in PLACES for path in root.glob(place)}
    found |= {path for folder in found if folder.is_dir() for path in folder.rglob("*")}
    return sorted(path for path in found if path.suffix in SUFFIXES and path.name != Path(__file__).name)


def prose(path: Path) -> str:
    """The text of a file; in Python, every character outside strings and comments is replaced by NUL."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    lines = text.splitlines(keepends=True)
    kept = [re.sub(r"\S", "\0", line) for line in lines]
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if re.match("STRING|FSTRING|COMMENT", tokenize.tok_name[token.type]):
            (first, begin), (last, end) = token.start, token.end
            for row in range(first - 1, last):
                left, right = begin * (row == first - 1), end if row == last - 1 else len(lines[row])
                kept[row] = kept[row][:left] + lines[row][left:right] + kept[row][right:]
    return "".join(kept)


def faults(path: Path) -> Iterator[tuple[int, str]]:
    """Line and message of each phrase in a file."""
    text = prose(path)
    for paragraph in re.finditer(r"(?:[^\n]*\S[^\n]*(?:\n|$))+", text):
        for phrase, better in _PHRASES:
            for match in phrase.finditer(paragraph.group()):
                line = text.count("\n", 0, paragraph.start() + match.start()) + 1
                yield line, f'"{re.sub(_GAP, " ", match.group())}": write "{match.expand(better)}"'


def main(arguments: list[str]) -> int:
    """Print the faults, or their number per file."""
    named = [Path(name).resolve() for name in arguments if name != "--count"]
    found = [(path, *fault) for path in named or files(ROOT) for fault in faults(path)]
    shown = [path.relative_to(ROOT) if path.is_relative_to(ROOT) else path for path, *_ in found]
    if "--count" in arguments:
        lines = [f"{count:6} {path}" for path, count in Counter(shown).most_common()]
    else:
        lines = [f"{path}:{line}: {what}" for path, (_, line, what) in zip(shown, found, strict=True)]
    print("\n".join(lines) or "no phrase that has a better one")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

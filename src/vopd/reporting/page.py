"""The parts of an HTML page that stands alone: no request leaves it, and no text from a model can become markup."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from pathlib import Path

from vopd.errors import printable

_HERE = Path(__file__).parent


def escape(text: object) -> str:
    """Return text that is shown as it is: markup escaped, characters that cannot be seen written out.

    Control characters, terminal escapes, marks that reverse the reading direction and lone surrogates become \\x1b,
    \\u202e, \\udc80.
    """
    return html.escape(printable(str(text), "\n\t"))


def page(title: str, subtitle: str, sections: Sequence[str]) -> str:
    """Return the whole page. Its policy lets it load nothing and run only the script that vopd put in."""
    style, script = ((_HERE / name).read_text(encoding="utf-8").strip() for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = (
        f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>"
    )
    header = f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>"
    tooltip = '<div id="tip" role="status" hidden></div>'
    body = f"{header}\n<main>\n{''.join(sections)}</main>\n{tooltip}\n<script>{script}</script>"
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def section(name: str, title: str, body: str, note: str = "") -> str:
    """A titled part of the page; `body` is markup, title and note are text."""
    lead = f'<p class="note">{escape(note)}</p>\n' if note else ""
    return f'<section id="{name}">\n<h2>{escape(title)}</h2>\n{lead}{body}\n</section>\n'


def tiles(facts: Sequence[tuple[str, str, str]]) -> str:
    """A row of key numbers: (label, value, detail)."""
    cells = (
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}<small>{escape(detail)}</small></dd></div>"
        for label, value, detail in facts
    )
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table: the first column holds names, the others numbers. Scrolls sideways where it is too wide."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in headers)
    lines = (
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def folded(title: str, body: str) -> str:
    """Markup behind a line that opens it."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"

"""Parts of a self-contained HTML page: it makes no requests, and no text from a model can become markup."""

from __future__ import annotations

import base64
import hashlib
import html
import time
from collections.abc import Sequence
from pathlib import Path

from vopd.errors import printable

_HERE = Path(__file__).parent


def escape(text: object) -> str:
    """Escape markup, and write invisible characters as text.

    Control characters, terminal escapes, right-to-left marks and lone surrogates become \\x1b, \\u202e, \\udc80.
    """
    return html.escape(printable(str(text), "\n\t"))


def page(title: str, subtitle: str, sections: Sequence[str], *, reload: float = 0) -> str:
    """Return the whole page. Its content security policy allows no requests and no script but its own.

    Args:
        reload: seconds after which the browser loads the page again; 0 for never.
    """
    style, script = ((_HERE / name).read_text(encoding="utf-8").strip() for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = (
        f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>"
    )
    live = ""
    if reload:
        seconds = max(1, round(reload))  # browsers round down, and 0 would reload without a pause
        head = f'<meta http-equiv="refresh" content="{seconds}">\n{head}'
        live = f'<p class="live">Written at {time.strftime("%H:%M:%S")}; this page reloads every {seconds} s.</p>'
    header = f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p>{live}</header>"
    tooltip = '<div id="tip" role="status" hidden></div>'
    body = f"{header}\n<main>\n{''.join(sections)}</main>\n{tooltip}\n<script>{script}</script>"
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def section(name: str, title: str, body: str, note: str = "") -> str:
    """A section with a title; `body` is markup, title and note are text."""
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
    """A table: names in the first column, numbers in the others. Scrolls sideways if it is too wide."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in headers)
    lines = (
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def folded(title: str, body: str) -> str:
    """Markup that is hidden until its title is clicked."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"

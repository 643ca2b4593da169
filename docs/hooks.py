"""What MkDocs cannot do by itself: pages from the root of the repository, links that leave docs/, ranks in the search.

The documents are written for GitHub, where every relative link works. In the site a link from one document to another
works as well; a link to any other file of the repository becomes its address under ``repo_url``, or, while there is
none, the file's path in the text. A file that does not exist is a warning, which ``make docs`` counts as an error.
"""

from __future__ import annotations

import logging
import os.path
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
_RECIPES = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "recipes").glob("**/README.md"))]
# Documents that stand outside docs/, and where they are in the site.
ELSEWHERE = {
    "CONTRIBUTING.md": "contributing/index.md",
    "CHANGELOG.md": "contributing/changelog.md",
    **{name: name.replace("/README.md", ".md") for name in _RECIPES},
}
# How much a page counts in the search, by the start of its path: 1 for all others, and 0 excludes it. Not in front
# matter, which GitHub shows as a table.
SEARCH = {
    "concepts/": 2,
    "how-to/": 2,
    "reference/api/": 0.5,
    "contributing/bug-catalogue.md": 0,
    "contributing/": 0.25,
}
# Pages with a wide table: without the table of contents at their right.
WIDE = ("evidence.md",)

_FENCE = re.compile(r"(^( *)```.*?^\2```[^\n]*$)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s#:]+)(#[^()\s]*)?\)")
# GitHub wants a backslash before a pipe in the code of a table, and Python-Markdown shows it.
_TABLE_ROW = re.compile(r"^\|.*`.*$", re.MULTILINE)
_CODE = re.compile(r"`[^`]+`")
# Python-Markdown, unlike GitHub, takes a list for part of the paragraph above it.
_GLUED_LIST = re.compile(r"^(?! *(?:[-*|<#:]|\d+\.) )\S.*\n(?:[-*]|1\.) .*", re.MULTILINE)
# And takes a list that is indented by less than four spaces for no list within another.
_SHALLOW_LIST = re.compile(r"^ {2,3}(?:[-*]|\d+\.) .*", re.MULTILINE)

logger = logging.getLogger("mkdocs.hooks.vopd")


def on_config(config: Any) -> Any:
    """Put the recipes into the navigation, behind "How-to"."""
    if _RECIPES:
        config.nav.insert(3, {"Recipes": [ELSEWHERE[name] for name in _RECIPES]})
    return config


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the documents that stand outside docs/."""
    for name, uri in ELSEWHERE.items():
        files.append(File.generated(config, uri, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, **_: Any) -> str:
    """Turn the relative links of a document, which stand in code nowhere, into links of the site; rank the page and
    lay it out."""
    uri = page.file.src_uri
    boost = next((boost for start, boost in SEARCH.items() if uri.startswith(start)), 1)
    page.meta["search"] = {"boost": boost, "exclude": boost == 0}
    if uri in WIDE:
        page.meta["hide"] = ["toc"]
    source = next((ROOT / name for name, there in ELSEWHERE.items() if there == uri), DOCS / uri)
    parts = _FENCE.split(markdown)  # text, fence, its indentation, text, ...
    for place in range(0, len(parts), 3):
        for line in _GLUED_LIST.findall(parts[place]):
            logger.warning("%s: a list needs an empty line before it: %r", source.relative_to(ROOT), line)
        for line in _SHALLOW_LIST.findall(parts[place]):
            logger.warning("%s: a list in a list needs four spaces: %r", source.relative_to(ROOT), line)
        parts[place] = _LINK.sub(lambda link: _in_site(link, source, uri, config.repo_url), parts[place])
        parts[place] = _TABLE_ROW.sub(_unescaped_code, parts[place])
    return "".join(part for place, part in enumerate(parts) if place % 3 != 2)


def _unescaped_code(row: re.Match[str]) -> str:
    return _CODE.sub(lambda code: code[0].replace("\\|", "|"), row[0])


def _in_site(link: re.Match[str], source: Path, uri: str, repo_url: str | None) -> str:
    image, text, target, anchor = link.groups(default="")
    found = Path(os.path.normpath(source.parent / target))
    where = found.relative_to(ROOT).as_posix() if found.is_relative_to(ROOT) else ""
    inside = ELSEWHERE.get(where) or ELSEWHERE.get(f"{where}/README.md")
    if found.is_relative_to(DOCS):
        inside = found.relative_to(DOCS).as_posix()
    if inside is not None:  # MkDocs itself looks whether the page and its anchor exist
        return f"{image}[{text}]({os.path.relpath(inside, Path(uri).parent)}{anchor})"
    if not where or not found.exists():
        logger.warning("%s: a link to %r, which does not exist", source.relative_to(ROOT), target)
    if repo_url:
        kind = "tree" if found.is_dir() else "blob"
        return f"{image}[{text}]({repo_url.rstrip('/')}/{kind}/main/{where}{anchor})"
    if f"/{where}".endswith("/" + text.strip("`").rstrip("/")):  # the text is the file's name: its path, once
        return f"`{where}`"
    return text if where in text else f"{text} (`{where}`)"

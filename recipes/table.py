"""`python recipes/table.py` writes recipes/README.md's table from the list at the top of each recipe's README.md."""

from __future__ import annotations

import re
from pathlib import Path

RECIPES = Path(__file__).parent
COLUMNS = ("What", "Command", "Hardware", "Hours", "Numbers", "Status")
BEGIN, END = "<!-- written by recipes/table.py -->", "<!-- end -->"


def table(links: str = "") -> str:
    """The table in Markdown; `links` is the way from the page to this folder, "" or "recipes/"."""
    lines = [f"| recipe | {' | '.join(map(str.lower, COLUMNS))} |", "|" + "---|" * (len(COLUMNS) + 1)]
    for page in sorted(RECIPES.glob("*/README.md")):
        found = dict(re.findall(r"^- (\w+): (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE))
        name = page.parent.name
        lines.append(f"| [{name}]({links}{name}/README.md) | {' | '.join(found[column] for column in COLUMNS)} |")
    return "\n".join(lines)


def with_table(text: str, links: str = "") -> str:
    """`text` with what stands between BEGIN and END replaced by the table."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table(links)}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    page = RECIPES / "README.md"
    page.write_text(with_table(page.read_text(encoding="utf-8")), encoding="utf-8")

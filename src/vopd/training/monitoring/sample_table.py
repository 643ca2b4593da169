"""Completions of a step as a table on the terminal, without any tracker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_PROMPT_END = 120
_COMPLETION = 600


def sample_table(records: Sequence[dict[str, Any]], step: int) -> Any:
    """Return a rich table of sample records (as in samples.jsonl): prompt, completion, length, rewards, advantages.

    Of a long prompt the end is shown, of a long completion the beginning. What a model wrote never reaches the terminal
    as a control sequence or as markup.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"step {step}", show_lines=True)
    for name in ("prompt", "completion"):
        table.add_column(name, overflow="fold")
    for name in ("tokens", "reward", "advantage"):
        table.add_column(name, justify="right")
    for record in records:
        cells = [
            _shortened(_harmless(record["prompt"]), _PROMPT_END, end=True),
            _shortened(_harmless(record["completion"]), _COMPLETION) + (" (cut off)" if record["truncated"] else ""),
            str(len(record["tokens"])),
            _mean_and_range(record.get("rewards")),
            _mean_and_range(record.get("advantages")),
        ]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _harmless(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _shortened(text: str, limit: int, *, end: bool = False) -> str:
    if len(text) <= limit:
        return text
    return "... " + text[-limit:] if end else text[:limit] + " ..."


def _mean_and_range(values: Sequence[float] | None) -> str:
    if not values:
        return "-"
    return f"{sum(values) / len(values):+.2f}\n{min(values):+.2f} to {max(values):+.2f}"

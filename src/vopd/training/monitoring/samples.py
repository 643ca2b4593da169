"""A few completions of each step, with the reward of every token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vopd.errors import printable
from vopd.estimators import DistillationOutput

from ..batch import Batch

_DIGITS = 5
# Characters to show: of a prompt its end, of a completion its beginning.
_PROMPT_END = 120
_COMPLETION = 600
_OF_BATCH = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "scores")
_PER_TOKEN = ("rewards", "advantages", "reverse_kl")


class SampleBuffer:
    """Keeps `limit` completions of a step until they are taken: the first by `sample_order`, or by row without one.
    Copies nothing to the host until then.

    `rewards` are the names of the reward functions that scored them.
    """

    def __init__(self, limit: int, rewards: Sequence[str]) -> None:
        self.limit = limit
        self.rewards = rewards
        self._rows: dict[int, dict[str, Tensor]] = {}

    def offer(self, batch: Batch, output: DistillationOutput) -> None:
        """Keep those of a micro-batch's rows that are among the first `limit` of the step."""
        rows = range(len(batch.completion_ids)) if batch.sample_order is None else batch.sample_order.tolist()
        if min(rows) >= self.limit:
            return
        known = {name: getattr(batch, name) for name in _OF_BATCH} | {
            name: getattr(output, name) for name in _PER_TOKEN
        }
        columns = {name: values for name, values in known.items() if values is not None}
        for row, place in enumerate(rows):
            if place < self.limit:
                self._rows[place] = {name: column[row].clone() for name, column in columns.items()}

    def take(self, step: int, tokenizer: Any, end_ids: list[int]) -> list[dict[str, Any]]:
        """Return the records of `step` as plain objects, and empty the buffer."""
        rows, self._rows = self._rows, {}
        return [self._record(rows[place], step, tokenizer, end_ids) for place in sorted(rows)]

    def _record(self, row: dict[str, Tensor], step: int, tokenizer: Any, end_ids: list[int]) -> dict[str, Any]:
        length = int(row["completion_mask"].sum())
        ids = row["completion_ids"][:length].tolist()
        record = {
            "step": step,
            "prompt": tokenizer.decode(row["prompt_ids"][row["prompt_mask"].bool()].tolist()),
            "completion": tokenizer.decode(ids),
            "truncated": not ids or ids[-1] not in end_ids,
            "tokens": [tokenizer.decode([token]) for token in ids],
        }
        for name in _PER_TOKEN:
            if name in row:
                record[name] = [round(value, _DIGITS) for value in row[name][:length].tolist()]
        if "scores" in row:  # a list, in which NaN is written as null
            record["scores"] = [round(value, _DIGITS) for value in row["scores"].tolist()]
            record["scored_by"] = list(self.rewards)
        return record


def sample_table(records: Sequence[dict[str, Any]], step: int) -> Any:
    """Return a rich table of sample records (as in samples.jsonl): prompt, completion, length, rewards, advantages.

    Long prompts are cut at the start, long completions at the end. Model output never reaches the terminal as control
    sequences or markup.
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
            _shortened(printable(record["prompt"], "\n"), _PROMPT_END, end=True),
            _shortened(printable(record["completion"], "\n"), _COMPLETION)
            + (" (cut off)" if record["truncated"] else ""),
            str(len(record["tokens"])),
            _mean_and_range(record.get("rewards")),
            _mean_and_range(record.get("advantages")),
        ]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _shortened(text: str, limit: int, *, end: bool = False) -> str:
    if len(text) <= limit:
        return text
    return "... " + text[-limit:] if end else text[:limit] + " ..."


def _mean_and_range(values: Sequence[float] | None) -> str:
    if not values:
        return "-"
    return f"{sum(values) / len(values):+.2f}\n{min(values):+.2f} to {max(values):+.2f}"

"""A few completions of each step, with what every token of them was rewarded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vopd.estimators import DistillationOutput

_DIGITS = 5
_PER_TOKEN = ("rewards", "advantages", "reverse_kl")


class SampleBook:
    """Keeps the first `limit` completions of a step until they are taken. Copies nothing to the host before that.

    `rewards` are the names of the reward functions that scored them.
    """

    def __init__(self, limit: int, rewards: Sequence[str] = ()) -> None:
        self.limit = limit
        self.rewards = rewards
        self._rows: list[dict[str, Tensor]] = []

    def offer(self, inputs: dict[str, Any], output: DistillationOutput) -> None:
        """Keep rows of a micro-batch while there is room."""
        room = self.limit - len(self._rows)
        if room <= 0:
            return
        names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "scores")
        columns = {name: inputs[name] for name in names if name in inputs}
        for name in _PER_TOKEN:
            if getattr(output, name) is not None:
                columns[name] = getattr(output, name)
        for row in range(min(room, inputs["completion_ids"].size(0))):
            self._rows.append({name: column[row].clone() for name, column in columns.items()})

    def take(self, step: int, tokenizer: Any, end_ids: list[int]) -> list[dict[str, Any]]:
        """The records of `step` as plain objects, and an empty book."""
        rows, self._rows = self._rows, []
        return [_record(row, step, tokenizer, end_ids, self.rewards) for row in rows]


def _record(
    row: dict[str, Tensor], step: int, tokenizer: Any, end_ids: list[int], rewards: Sequence[str]
) -> dict[str, Any]:
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
    if "scores" in row:  # a list, for a number that is none is written as null
        record["scores"] = [round(value, _DIGITS) for value in row["scores"].tolist()]
        record["scored_by"] = list(rewards)
    return record

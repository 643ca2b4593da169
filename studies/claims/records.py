"""What is kept of a run, and a run's figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vopd.experiments.grid import GridRun, is_finished, measured_of

Record = dict[str, Any]
_LAST = 3  # the checkpoints of `Size.last_steps`


def record_of(setting: str, run: GridRun, folder: Path) -> Record:
    """What is kept of a finished run: what it was, and what was measured or why it broke off; nothing of its time."""
    measured = measured_of(folder / run.directory)
    kept = ("failed",) if "failed" in measured else ("reverse_kl", "accuracy", "sampled_accuracy")
    record = {"setting": setting, "estimator": run.estimator.name, "rate": run.learning_rate, "seed": run.seed}
    return {**record, **{name: measured[name] for name in kept}}


def records_of(setting: str, runs: Sequence[GridRun], folder: Path) -> list[Record]:
    """Those of the runs that are finished."""
    return [record_of(setting, run, folder) for run in runs if is_finished(folder / run.directory)]


def write_records(records: Sequence[Record], path: Path) -> None:
    """A record a line, as JSON."""
    lines = ",\n".join(json.dumps(record, separators=(",", ":")) for record in records)
    path.write_text(f"[\n{lines}\n]\n", encoding="ascii")


@dataclass(frozen=True)
class Figure:
    """Held-out reverse KL in nats per token, and its standard error from the completions that were sampled for it."""

    value: float
    error: float


def figure(record: Mapping[str, Any], checkpoints: int = _LAST, completions: float = 1.0) -> Figure:
    """The mean of the reverse KL over a run's last checkpoints, each the divergence per token of its completions.

    Args:
        checkpoints: how many.
        completions: the share of each checkpoint's completions that is taken.

    The standard error is that of the ratio of means by its linear form over blocks of completions; the completions of
    different checkpoints are drawn independently, though for the same problems.
    """
    values, linear = [], []
    for _, blocks in record["reverse_kl"][-checkpoints:]:
        taken = torch.tensor(blocks[: round(completions * len(blocks))], dtype=torch.float64)
        total, tokens = taken.unbind(1)
        value = total.sum() / tokens.sum()
        values.append(value)
        linear.append((total - value * tokens) / tokens.mean())
    # The same problems are in block i of each checkpoint: their mean is one observation.
    over_blocks = torch.stack(linear).mean(0)
    error = over_blocks.std() / len(over_blocks) ** 0.5
    return Figure(float(torch.stack(values).mean()), float(error))


def curve(record: Mapping[str, Any]) -> list[tuple[int, float]]:
    """(step, reverse KL) at every checkpoint that was measured."""
    return [(step, sum(t for t, _ in blocks) / sum(n for _, n in blocks)) for step, blocks in record["reverse_kl"]]

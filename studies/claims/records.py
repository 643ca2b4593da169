"""What is kept of a run, and a run's figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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


def block_values(record: Mapping[str, Any], checkpoints: int = _LAST, completions: float = 1.0) -> Tensor:
    """What every block of completions says of the reverse KL of a run, (blocks,); their mean is the run's figure.

    The figure is the mean over the run's last checkpoints of the divergence per token of their completions, a ratio of
    means; a block's value is that ratio's linear form. Block i has the same problems at every checkpoint, so the mean
    over the checkpoints is one observation.

    Args:
        checkpoints: how many.
        completions: the share of each checkpoint's completions that is taken.
    """
    found = []
    for _, blocks in record["reverse_kl"][-checkpoints:]:
        taken = torch.tensor(blocks[: round(completions * len(blocks))], dtype=torch.float64)
        total, tokens = taken.unbind(1)
        value = total.sum() / tokens.sum()
        found.append(value + (total - value * tokens) / tokens.mean())
    return torch.stack(found).mean(0)


def figure_of(values: Tensor) -> Figure:
    """The mean of blocks' values and its standard error."""
    return Figure(float(values.mean()), float(values.std()) / len(values) ** 0.5)


def figure(record: Mapping[str, Any], checkpoints: int = _LAST, completions: float = 1.0) -> Figure:
    """A run's figure; arguments as for `block_values`."""
    return figure_of(block_values(record, checkpoints, completions))


def curve(record: Mapping[str, Any]) -> list[tuple[int, float]]:
    """(step, reverse KL) at every checkpoint that was measured."""
    return [(step, sum(t for t, _ in blocks) / sum(n for _, n in blocks)) for step, blocks in record["reverse_kl"]]

"""How a checkpoint was made, as far as that decides which runs can resume from it."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from vopd.errors import counted
from vopd.placement import unreadable

if TYPE_CHECKING:
    from ..trainer import VOPDTrainer


@dataclass(frozen=True)
class Origin:
    """The processes that a run trains on.

    Attributes:
        processes: their number.
        launcher: what distributes the weights over them, as named by `Placement.launcher`.
        step_prompts: prompts per optimizer step over all of them.
    """

    processes: int
    launcher: str
    step_prompts: int

    @classmethod
    def of(cls, trainer: VOPDTrainer) -> Origin:
        """The origin of checkpoints saved by `trainer`."""
        args = trainer.args
        return cls(args.world_size, trainer.placement.launcher, args.step_prompts)

    @classmethod
    def read(cls, manifest: Path) -> Origin | None:
        """The origin of a checkpoint; None if another version wrote it without one."""
        found = json.loads(manifest.read_text(encoding="ascii")).get("origin", {})
        names = [field.name for field in fields(cls)]
        return cls(*(found[name] for name in names)) if found.keys() >= set(names) else None


def mismatch(saved: Origin, now: Origin, accumulation: int) -> str | None:
    """Why a run cannot resume from a checkpoint, and what to change; None if it can.

    The number of prompts per step decides which prompts come next: with another number a run would repeat some, skip
    others, or think that it is finished. With the same number of processes, another batch size is a deliberate choice.

    Args:
        saved: origin of the checkpoint.
        now: origin of the run.
        accumulation: the run's gradient_accumulation_steps.
    """
    problem = unreadable(saved.launcher, saved.processes, now.launcher, now.processes)
    if problem is not None or saved.processes == now.processes or saved.step_prompts == now.step_prompts:
        return problem
    steps, rest = divmod(accumulation * saved.step_prompts, now.step_prompts)
    change = "choose per_device_train_batch_size and gradient_accumulation_steps that give"
    if rest == 0:
        change = f"set gradient_accumulation_steps={steps}, which gives"
    return (
        f"it was saved with {counted(saved.step_prompts, 'prompt')} per step (processes: {saved.processes}), and this "
        f"run has {now.step_prompts} (processes: {now.processes}); {change} {saved.step_prompts}"
    )

"""How a checkpoint was made, as far as that decides who can go on from it."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from vopd.placement import unreadable

if TYPE_CHECKING:
    from ..trainer import VOPDTrainer


@dataclass(frozen=True)
class Origin:
    """The processes of a run.

    Attributes:
        processes: how many.
        launcher: what spreads the weights over them, as `Placement.launcher` names it.
        step_prompts: prompts of one optimizer step over all of them.
    """

    processes: int
    launcher: str
    step_prompts: int

    @classmethod
    def of(cls, trainer: VOPDTrainer) -> Origin:
        """That of a run."""
        args = trainer.args
        return cls(args.world_size, trainer.placement.launcher, args.step_prompts)

    @classmethod
    def read(cls, manifest: Path) -> Origin | None:
        """That of a checkpoint; None where another version wrote it, which does not tell."""
        found = json.loads(manifest.read_text(encoding="ascii")).get("origin", {})
        names = [field.name for field in fields(cls)]
        return cls(*(found[name] for name in names)) if found.keys() >= set(names) else None


def mismatch(saved: Origin, now: Origin, accumulation: int) -> str | None:
    """Why a run cannot go on from a checkpoint, and what to change; None where it can.

    A step's prompts decide where in their order the next ones are: with another number of them a run would repeat some,
    leave others out, or take itself for finished. Who changes the batch with the same processes has chosen that.

    Args:
        saved: of the checkpoint.
        now: of the run.
        accumulation: the run's gradient_accumulation_steps.
    """
    problem = unreadable(saved.launcher, saved.processes, now.launcher, now.processes)
    if problem is not None or saved.processes == now.processes or saved.step_prompts == now.step_prompts:
        return problem
    steps, rest = divmod(accumulation * saved.step_prompts, now.step_prompts)
    change = "choose per_device_train_batch_size and gradient_accumulation_steps that make them"
    if rest == 0:
        change = f"set gradient_accumulation_steps={steps}, which makes them"
    return (
        f"its steps have {saved.step_prompts} prompts (processes: {saved.processes}), those of this run "
        f"{now.step_prompts} (processes: {now.processes}); {change} {saved.step_prompts}"
    )

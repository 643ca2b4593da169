"""Whether a run can resume from a checkpoint, and what it changes there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vopd.errors import ConfigurationError, counted

from ..inherited import FOLLOWING
from .contract import FREE, NEW_RUN, RULES, SCHEDULE, Change, differences, refuse

_SCHEDULE = "lr_scheduler_type"
# What the names of their files have in them, under every launcher.
_STATES = {"optimizer": "optim", "random states": "rng_state"}


@dataclass(frozen=True)
class Resumed:
    """A checkpoint that a run resumes from.

    Attributes:
        path: its folder.
        step: its step.
        steps: those that the run is to have.
        changes: settings that differ from the checkpoint's.
        earlier: those that had changed before the checkpoint.
        lacking: settings that it does not record, because another version wrote it.
    """

    path: Path
    step: int
    steps: int
    changes: list[Change]
    earlier: list[Change]
    lacking: list[str]

    def told(self) -> list[str]:
        """Lines for the user, the first of which says that the run resumes."""
        finished = f", the end of this run: all {counted(self.steps, 'step')} are done"
        lines = [f"resuming from {self.path}" + finished * (self.step == self.steps)]
        if self.changes:
            lines[0] += " with " + "; ".join(map(str, self.changes))
            if any(change.name in SCHEDULE for change in self.changes):
                schedule = f"that of a run of {counted(self.steps, 'step')} with these settings"
                lines[0] += f"; from step {self.step + 1:,} the learning rate is {schedule}"
        if self.lacking:
            few = self.lacking if len(self.lacking) < 6 else ["what it was trained with"]
            lines.append(f"{self.path} was saved by another version and does not record {', '.join(few)}: not compared")
        return lines


def resumed(checkpoint: Path, step: int, now: Mapping[str, Any], steps: int) -> Resumed:
    """How a run with the settings `now` (`contract.settings_of`) and so many `steps` resumes from a valid checkpoint.

    Raises:
        ConfigurationError: it cannot: the objective or the data would change, the checkpoint has only the model, or it
            is later than the run's last step.
    """
    manifest = _manifest(checkpoint)
    cannot = f"cannot resume from {checkpoint}"
    if lost := lost_states(checkpoint):
        raise ConfigurationError(
            f"{cannot}: it has the model, but no {' and no '.join(lost)} (save_only_model); {NEW_RUN}, with this "
            "checkpoint as --model"
        )
    saved = _comparable(manifest.get("settings", {}))
    changes = differences(saved, now, step)
    refuse([one for one in changes if one.refused], cannot, "go on with the settings of the checkpoint, or ")
    if {saved.get(_SCHEDULE), now.get(_SCHEDULE)} & {*FOLLOWING}:
        rates = [one for one in changes if one.name in (_SCHEDULE, "learning_rate", "lr_scheduler_kwargs")]
        refuse(rates, f"{cannot} with another learning rate, because a schedule follows a metric")
    if steps < step:
        raise ConfigurationError(
            f"{cannot}: its {counted(step, 'step')} are more than the {steps:,} asked for; raise max_steps, or "
            f"{NEW_RUN}"
        )
    if steps == step:
        refuse(changes, f"{cannot} with other settings, because all its steps are done", "raise max_steps, or ")
    lacking = [name for name in now if name not in saved and RULES.get(name) != FREE]
    earlier = [Change(**record) for record in manifest.get("changes", [])]
    return Resumed(checkpoint, step, steps, changes, earlier, lacking)


def _comparable(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a checkpoint records, without what an earlier version recorded in another form: with the chat template, it
    had the rendered texts as prompts, and `thinking` among the arguments of the template."""
    if not saved.get("chat_template") or "last_assistant_turn" in saved:
        return saved
    return {name: value for name, value in saved.items() if name not in ("dataset", "chat_template_kwargs")}


def lost_states(checkpoint: Path) -> list[str]:
    """What a valid checkpoint has not saved besides the model: none of it, with save_only_model."""
    files = _manifest(checkpoint)["files"]
    return [what for what, part in _STATES.items() if not any(part in name for name in files)]


def _manifest(checkpoint: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((checkpoint / "manifest.json").read_text(encoding="ascii"))
    return found

"""The logs of a run: metrics.jsonl, samples.jsonl and guards.jsonl."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from vopd.atomic import write_whole
from vopd.reporting.run_files import GUARDS_FILE, METRICS_FILE, SAMPLES_FILE

from .checkpoints import clear_save_errors


class RunLog(TrainerCallback):
    """Writes metrics.jsonl, one object per logged step, and samples.jsonl, one object per kept completion.

    guards.jsonl, one object each time that a guard fires, is opened here and written by ``GuardWatch``. A resumed run
    cuts all three back to its checkpoint, so no step is in them twice. A run that starts over in the same
    folder renames the old files.

    Args:
        output_dir: folder of the files.
        take_samples: returns the sample records of the step that ended.
    """

    def __init__(self, output_dir: str, take_samples: Callable[[int], list[dict[str, Any]]]) -> None:
        self.folder = Path(output_dir)
        self.take_samples = take_samples

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            for name in (METRICS_FILE, SAMPLES_FILE, GUARDS_FILE):
                open_log(self.folder / name, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            append(self.folder / SAMPLES_FILE, self.take_samples(state.global_step))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if state.is_world_process_zero and is_step(logs):
            record = {name: value for name, value in logs.items() if _strict(value) is not None}
            append(self.folder / METRICS_FILE, [{"step": state.global_step, **record}])


def is_step(logs: dict[str, Any]) -> bool:
    """False for the summary at the end of training, which belongs to no step."""
    return "loss" in logs or any(name.startswith("eval_") for name in logs)


def _strict(value: Any) -> Any:
    """`value` for strict JSON: null for NaN and infinities, which fp16 loss scaling occasionally causes."""
    if isinstance(value, list):
        return [_strict(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def open_log(path: Path, step: int) -> None:
    """Cut the log at `path` back to the records up to `step`; at step 0 rename an older file."""
    with clear_save_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if step == 0 and path.exists():
            os.replace(path, path.with_suffix(".previous.jsonl"))
        kept = list(_records_up_to(path, step)) if path.exists() else []
        write_whole(path, "".join(kept))


def _records_up_to(path: Path, step: int) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut short by the crash that the run resumes from
        if line.endswith("\n") and record["step"] <= step:
            yield line


def append(path: Path, records: list[dict[str, Any]]) -> None:
    """Append each record as one line of JSON, all in one write, so that a reader never sees a partial line.

    Everything but ASCII is escaped, so terminal escapes and lone surrogates in model output are harmless.
    """
    strict = ({name: _strict(value) for name, value in record.items()} for record in records)
    text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in strict)
    with clear_save_errors(path), path.open("ab", buffering=0) as file:
        rest = text.encode("ascii")
        while rest:  # a full disk accepts a part first and refuses only the next write
            rest = rest[file.write(rest) :]

"""What a run leaves on disk and shows while it runs."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from transformers import TrainerCallback

from vopd.atomic import write_whole
from vopd.errors import VOPDError

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"


class RunLog(TrainerCallback):
    """Writes metrics.jsonl, one object a logged step, and samples.jsonl, one object a kept completion.

    A resumed run cuts both back to its checkpoint, so no step is in them twice. A run that starts over in the same
    folder moves the old files aside.

    Args:
        output_dir: where the files go.
        take_samples: the sample records of the step that ended.
    """

    def __init__(self, output_dir: str, take_samples: Callable[[int], list[dict[str, Any]]]) -> None:
        self.folder = Path(output_dir)
        self.take_samples = take_samples

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            for name in (METRICS_FILE, SAMPLES_FILE):
                open_log(self.folder / name, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            append(self.folder / SAMPLES_FILE, self.take_samples(state.global_step))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if state.is_world_process_zero and _is_step(logs):
            record = {name: value for name, value in logs.items() if _strict(value) is not None}
            append(self.folder / METRICS_FILE, [{"step": state.global_step, **record}])


def _is_step(logs: dict[str, Any]) -> bool:
    """False for the summary that ends a run, which belongs to no step."""
    return "loss" in logs or any(name.startswith("eval_") for name in logs)


def _strict(value: Any) -> Any:
    """`value` as JSON can hold it: null for NaN and infinities, which fp16 loss scaling meets now and then."""
    if isinstance(value, list):
        return [_strict(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def open_log(path: Path, step: int) -> None:
    """Make `path` hold the records up to `step` and no others; at step 0 move an older file aside."""
    with _clear_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if step == 0 and path.exists():
            os.replace(path, path.with_suffix(".previous.jsonl"))
        kept = list(_records_up_to(path, step)) if path.exists() else []
        write_whole(path, "".join(kept))


def _records_up_to(path: Path, step: int) -> Iterator[str]:
    for line in path.read_text().splitlines(keepends=True):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # torn by the crash that the run resumes from
        if line.endswith("\n") and record["step"] <= step:
            yield line


def append(path: Path, records: list[dict[str, Any]]) -> None:
    """Append each record as one line of JSON, all in one write, so that a reader never sees half of one.

    Everything but ASCII is escaped: terminal escapes and lone surrogates in model text come out harmless.
    """
    strict = ({name: _strict(value) for name, value in record.items()} for record in records)
    text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in strict)
    if not text:
        return
    with _clear_errors(path):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            rest = text.encode("ascii")
            while rest:  # a full disk takes a part first, and refuses only the next write
                rest = rest[os.write(handle, rest) :]
        finally:
            os.close(handle)


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise VOPDError(
            f"cannot write {path}: {error.strerror or error}; free the space or choose another output_dir, "
            "then resume from the last checkpoint"
        ) from error


class Progress(TrainerCallback):
    """Shows how far a run is: one live line on a terminal, plain lines elsewhere; first of all the notes."""

    def __init__(self, stream: TextIO | None = None, notes: Sequence[str] = ()) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.notes = notes
        self._bar: Any = None
        self._task: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            for note in self.notes:
                print(note, file=self.stream, flush=True)
        if state.is_world_process_zero and self.stream.isatty():
            self._bar, self._task = _live_line(self.stream, state.global_step, state.max_steps)
            self._bar.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if not state.is_world_process_zero or not _is_step(logs):
            return
        numbers = key_numbers(logs)
        if self._bar is not None and "loss" not in logs:  # above the live line, which the next step writes over
            self._bar.console.print(numbers, markup=False, highlight=False)
        elif self._bar is not None:
            self._bar.update(self._task, completed=state.global_step, numbers=numbers)
        else:
            print(f"step {state.global_step}/{state.max_steps}  {numbers}", file=self.stream, flush=True)

    def show(self, table: Any) -> None:
        """Print a rich renderable above the live line."""
        from rich.console import Console

        console = self._bar.console if self._bar is not None else Console(file=self.stream)
        console.print(table)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was; also after an error."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = None


def _live_line(stream: TextIO, done: int, total: int) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}", markup=False),
        console=Console(file=stream),
    )
    return bar, bar.add_task("", total=total, completed=done, numbers="")


# Short label, and the metrics it is read from: the exact quantity where there is one.
_KEY_NUMBERS = {
    "loss": ("loss", "eval_loss"),
    "reverse KL": ("reverse_kl", "eval_reverse_kl"),
    "sampled reverse KL": ("sampled_reverse_kl", "eval_sampled_reverse_kl"),
    "entropy": ("entropy", "eval_entropy"),
    "length": ("completion_length", "eval_completion_length"),
    "tokens/s": ("tokens_per_second",),
}


def key_numbers(logs: dict[str, Any]) -> str:
    """The few numbers of a step that tell whether a run is well."""
    shown: dict[str, float] = {}
    for label, names in _KEY_NUMBERS.items():
        value = next((logs[name] for name in names if logs.get(name) is not None), None)
        if value is not None:
            shown[label] = value
    if "reverse KL" in shown:
        shown.pop("sampled reverse KL", None)
    texts = {label: f"{value:.4g}" for label, value in shown.items()} | _accuracies(logs)
    prefix = "evaluation  " if any(name.startswith("eval_") for name in logs) else ""
    return prefix + "  ".join(f"{label} {text}" for label, text in texts.items())


def _accuracies(logs: dict[str, Any]) -> dict[str, str]:
    """Each benchmark's avg@k with its interval."""
    found = {}
    for name, value in logs.items():
        low, high = logs.get(f"{name}_low"), logs.get(f"{name}_high")
        if low is not None and high is not None:
            label = name.removeprefix("eval_").replace("_avg@", " avg@")
            found[label] = f"{100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
    return found

"""What a run shows on the terminal while it goes on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from transformers import TrainerCallback

from ..saving.logs import is_step


class Progress(TrainerCallback):
    """Shows how far a run is: one live line on a terminal, plain lines elsewhere.

    Args:
        stream: where; default: stderr.
        first_lines: what is said first of all, once the models are where they are trained.
    """

    def __init__(self, stream: TextIO | None = None, first_lines: Callable[[], Sequence[str]] = list) -> None:
        self.stream = sys.stderr if stream is None else stream
        self._first_lines = first_lines
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            for line in self._first_lines():
                print(line, file=self.stream, flush=True)
        if state.is_world_process_zero and self.stream.isatty():
            self._bar = _live_line(self.stream, state.global_step, state.max_steps)
            self._bar.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if not state.is_world_process_zero or not is_step(logs):
            return
        numbers = key_numbers(logs)
        if self._bar is not None and "loss" not in logs:  # above the live line, which the next step writes over
            self._bar.console.print(numbers, markup=False, highlight=False)
        elif self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=state.global_step, numbers=numbers)
        else:
            print(f"step {state.global_step}/{state.max_steps}  {numbers}", file=self.stream, flush=True)

    def show(self, table: Any) -> None:
        """Print a rich renderable above the live line."""
        from rich.console import Console

        console = self._bar.console if self._bar is not None else Console(file=self.stream)
        console.print(table)

    def close(self) -> None:
        """Leave the terminal as it was; also after an error."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = None


def _live_line(stream: TextIO, done: int, total: int) -> Any:
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
    bar.add_task("", total=total, completed=done, numbers="")
    return bar


# Short label, and the metric it is read from.
_KEY_NUMBERS = {
    "loss": "loss",
    "reverse KL": "reverse_kl",
    "sampled reverse KL": "sampled_reverse_kl",
    "entropy": "entropy",
    "length": "completion_length",
    "tokens/s": "tokens_per_second",
}


def key_numbers(logs: dict[str, Any]) -> str:
    """The few numbers of a step that tell whether a run is well."""
    shown: dict[str, float] = {}
    for label, name in _KEY_NUMBERS.items():
        value = logs.get(name, logs.get(f"eval_{name}"))
        if value is not None:
            shown[label] = value
    if "reverse KL" in shown:  # the exact quantity
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

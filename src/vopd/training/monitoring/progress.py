"""What a run shows on the terminal during training: what it is going to do, then how far it is."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from transformers import TrainerCallback

from ..saving.logs import is_step


class Progress(TrainerCallback):
    """Shows how far a run is: one live line on a terminal, one line per logged step elsewhere.

    The remaining time is that of the steps which are left at the mean pace of those that this process has taken, with
    evaluations and checkpoints between them.

    Args:
        stream: where to print; default: stderr.
        first_lines: the lines printed before the first step, once the models are where they are trained.
    """

    def __init__(self, stream: TextIO | None = None, first_lines: Callable[[], Sequence[str]] = list) -> None:
        self.stream = sys.stderr if stream is None else stream
        self._first_lines = first_lines
        self._live: Any = None
        self._began: float | None = None
        self._before = self._done = self._total = 0
        self._ends: float | None = None
        self._numbers: list[str] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began, self._before, self._ends, self._numbers = None, state.global_step, None, []
        self._done, self._total = state.global_step, state.max_steps
        if not state.is_world_process_zero:
            return
        for line in self._first_lines():
            print(line, file=self.stream, flush=True)
        if self.stream.isatty():
            self._live = self._live_line()
            self._live.start()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._began is None:  # an evaluation before the first step is no part of the pace
            self._began = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if not state.is_world_process_zero or not is_step(logs):
            return
        numbers = key_numbers(logs)
        if "loss" not in logs:
            of = f"evaluation {_evaluation(logs)[5:-1]}".rstrip()
            self._print("  ".join([f"step {state.global_step}/{state.max_steps}", of, *numbers]))
            return
        self._done, self._numbers = state.global_step, numbers
        if self._began is not None and self._done > self._before:
            now = time.perf_counter()
            pace = (now - self._began) / (self._done - self._before)
            self._ends = now + pace * (self._total - self._done)
            self._numbers = [*numbers, f"{pace:.3g} s/step"]
        if self._live is None:
            self._print(self.line())
        else:
            self._live.refresh()

    def line(self, width: int | None = None) -> str:
        """The line of the newest logged step, with as many of its numbers as fit into `width` characters."""
        parts = [f"step {self._done}/{self._total}", f"{self._done / max(self._total, 1):.0%}"]
        if self._ends is not None and self._done < self._total:
            parts.append(f"eta {duration(self._ends - time.perf_counter())}")
        for number in self._numbers:
            if width is not None and len("  ".join([*parts, number])) > width:
                break
            parts.append(number)
        return "  ".join(parts)

    def show(self, table: Any) -> None:
        """Print a rich renderable above the live line."""
        from rich.console import Console

        console = self._live.console if self._live is not None else Console(file=self.stream)
        console.print(table)

    def close(self) -> None:
        """Leave the terminal as it was; also after an error."""
        if self._live is not None:
            self._live.stop()
        self._live = None

    def _print(self, line: str) -> None:
        if self._live is not None:  # above the live line
            self._live.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=self.stream, flush=True)

    def _live_line(self) -> Any:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        console = Console(file=self.stream)

        def line() -> Text:  # drawn every second: the ETA counts down and the width follows the window
            return Text(self.line(console.width - 1), no_wrap=True, overflow="ellipsis")

        return Live(console=console, get_renderable=line, refresh_per_second=1)


# Short label, the metric that it stands for, and its format. A narrow terminal shows the first ones.
_OBJECTIVE = (
    ("loss", "loss", ".4g"),
    ("reverse KL", "reverse_kl", ".4g"),
    ("sampled reverse KL", "sampled_reverse_kl", ".4g"),
)
_OTHERS = (
    ("lr", "learning_rate", ".3g"),
    ("length", "completion_length", ".4g"),
    ("tokens/s", "tokens_per_second", ".4g"),
    ("entropy", "entropy", ".3g"),
)


def key_numbers(logs: dict[str, Any]) -> list[str]:
    """The numbers of a step or an evaluation that say whether the run is healthy, the most important ones first."""
    metrics = {name.removeprefix(_evaluation(logs)): value for name, value in logs.items()}
    if "reverse_kl" in metrics:  # exact, where the other is an estimate from the sampled tokens
        metrics.pop("sampled_reverse_kl", None)
    return [*_texts(metrics, _OBJECTIVE), *_rewards(metrics), *_texts(metrics, _OTHERS), *_accuracies(logs)]


def _evaluation(logs: dict[str, Any]) -> str:
    """What the names of an evaluation's metrics begin with: "eval_", with several datasets "eval_NAME_"."""
    return next((name[: -len("runtime")] for name in logs if re.fullmatch("eval_.*runtime", name)), "eval_")


def _texts(metrics: dict[str, Any], wanted: Sequence[tuple[str, str, str]]) -> list[str]:
    return [f"{label} {metrics[name]:{form}}" for label, name, form in wanted if metrics.get(name) is not None]


def _rewards(metrics: dict[str, Any]) -> list[str]:
    """The mean of each reward function; with its name where there are several."""
    found = [(name.split("/"), value) for name, value in metrics.items()]
    means = {parts[1]: value for parts, value in found if parts[0] == "rewards" and parts[-1] == "mean"}
    return [f"reward{'' if len(means) == 1 else f' {name}'} {value:.3g}" for name, value in means.items()]


def _accuracies(logs: dict[str, Any]) -> list[str]:
    """The avg@k of each benchmark with its interval."""
    found = []
    for name, value in logs.items():
        low, high = logs.get(f"{name}_low"), logs.get(f"{name}_high")
        if low is not None and high is not None:
            label = name.removeprefix("eval_").replace("_avg@", " avg@")
            found.append(f"{label} {100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]")
    return found


def duration(seconds: float) -> str:
    """Return "45s", "3m12s", "1h02m" or "2d03h"."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour:02}h"
    if hours:
        return f"{hours}h{minute:02}m"
    return f"{minutes}m{second:02}s" if minutes else f"{second}s"

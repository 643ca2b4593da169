"""Guards: each checks the metrics of every logged step for one way in which distillation goes wrong.

A guard says what it saw and what to try. It warns once each time its problem starts; if it is named in ``guard_stop``,
it saves a checkpoint and ends the run instead. NaN and infinities are caught earlier, by ``finite.py``.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback

from vopd.errors import ConfigurationError, GuardError, check_known, counted
from vopd.estimators.policy_gradient import VOPD_OPTIMAL
from vopd.reporting.run_files import GUARDS_FILE

from ..rollout_logprobs import MEAN_DIFFERENCE
from ..saving.logs import append
from .metrics import ZERO_SPREAD_SHARE
from .stopping import Stopping

logger = logging.getLogger("vopd")

Metrics = dict[str, Any]
# Which runs log what a guard reads.
Reading = Literal["every run", "divergence", "engine", "rewards"]

# Nats/token that the reverse KL has to rise by, whatever the ratio: a rise from 0.01 to 0.05 is no explosion.
_RISE = 0.2
# Rise of the share of cut-off completions that turns growing lengths into an explosion.
_CUT_OFF = 0.1


class Window:
    """The last `size` values of one metric."""

    def __init__(self, size: int) -> None:
        self.values: deque[float] = deque(maxlen=size)

    def add(self, value: float | None) -> float | None:
        """Add a value and return the mean; None until there are `size` values, and for a step without a value."""
        if value is not None:
            self.values.append(value)
        full = value is not None and len(self.values) == self.values.maxlen
        return sum(self.values) / len(self.values) if full else None


class Guard:
    """Checks for one way in which distillation goes wrong.

    Args:
        limit: limit of the quantity that it checks.
        window: number of logged steps that it averages over.
    """

    name: str
    triggers: str  # when, for the documents, with "this" for the limit
    reads: Reading = "every run"

    def __init__(self, limit: float, window: int) -> None:
        self.limit, self.window = limit, Window(window)

    def check(self, metrics: Metrics) -> str | None:
        """What is wrong after the metrics of one more logged step, and what to try; None if nothing is."""
        raise NotImplementedError


class ReverseKL(Guard):
    """The mean reverse KL of a window is `limit` times the lowest so far: the policy diverges."""

    name = "reverse_kl"
    triggers = "the mean reverse KL is this many times its lowest so far, and at least 0.2 nats/token above it"
    reads = "divergence"
    lowest = float("inf")
    metric = "sampled_reverse_kl"

    def check(self, metrics: Metrics) -> str | None:
        if "reverse_kl" in metrics:  # the exact one: measured from the first step on, but perhaps not at every step
            self.metric = "reverse_kl"
        mean = self.window.add(metrics.get(self.metric))
        if mean is None:
            return None
        self.lowest = min(self.lowest, mean)
        if mean <= max(self.limit * max(self.lowest, 0.0), self.lowest + _RISE):
            return None
        return (
            f"the reverse KL rose to {mean:.3g} nats/token, from {self.lowest:.3g} at its lowest; try a lower "
            f"learning_rate or max_grad_norm, or an estimator with less variance such as {VOPD_OPTIMAL.name}, and "
            "restart from an earlier checkpoint"
        )


class Truncation(Guard):
    """A share of `limit` or more of a window's completions was cut off at max_completion_length."""

    name = "truncation"
    triggers = "this share of completions is cut off at `max_completion_length`"

    def check(self, metrics: Metrics) -> str | None:
        mean = self.window.add(metrics.get("truncated_share"))
        if mean is None or mean < self.limit:
            return None
        return (
            f"{mean:.0%} of the completions were cut off at the length limit; try a larger max_completion_length, and "
            "check that the student stops at the teacher's EOS tokens (vopd train --dry_run shows both)"
        )


class Length(Guard):
    """Completions grew to `limit` times the first window's length, up to the length limit: they repeat themselves."""

    name = "length"
    triggers = "completions are this many times as long as the first ones, and the share that is cut off grew by 0.1"
    first: tuple[float, float] | None = None

    def __init__(self, limit: float, window: int) -> None:
        super().__init__(limit, window)
        self.shares = Window(window)

    def check(self, metrics: Metrics) -> str | None:
        length = self.window.add(metrics.get("completion_length"))
        share = self.shares.add(metrics.get("truncated_share"))
        if length is None or share is None:
            return None
        if self.first is None:
            self.first = length, share
        if length < self.limit * self.first[0] or share < self.first[1] + _CUT_OFF:
            return None
        return (
            f"completions grew from {self.first[0]:.0f} to {length:.0f} tokens and {share:.0%} are cut off; look for "
            "repetition in samples.jsonl, try a lower learning_rate, and check that student and teacher have the same "
            "EOS tokens"
        )


class Logprobs(Guard):
    """Trainer and rollout engine differ by `limit` nats per sampled token on average: the rollout is off-policy."""

    name = "logprobs"
    triggers = "rollout engine and trainer differ by this many nats/token: stale weights, or another temperature"
    reads = "engine"

    def check(self, metrics: Metrics) -> str | None:
        mean = metrics.get(MEAN_DIFFERENCE, 0.0)
        if mean <= self.limit:
            return None
        return (
            f"the rollout engine's log-probabilities differ from the trainer's by {mean:.3f} nats/token on average "
            f"(allowed: {self.limit:g}): its weights may be stale, or temperature is not 1 and the server was started "
            "without --logprobs-mode processed_logprobs; try the same precision for both, and keep "
            "importance_sampling on"
        )


class LogprobsStop(Logprobs):
    """The same, at a difference too large for importance weights to correct; always ends the run."""

    name = "logprobs_stop"
    triggers = "the same; always ends the run"


class SameTeacher(Guard):
    """In the first window teacher and student never differed by more than `limit` nats: there is nothing to learn."""

    name = "same_teacher"
    triggers = "the teacher never differed from the student by more than this many nats in the first window"
    reads = "divergence"
    largest = 0.0

    def __init__(self, limit: float, window: int) -> None:
        super().__init__(limit, window)
        self.left = window

    def check(self, metrics: Metrics) -> str | None:
        found = [
            metrics[name] for name in ("reverse_kl", "sampled_reverse_kl", "teacher_reward/std") if name in metrics
        ]
        if not found or self.left == 0:
            return None
        self.left -= 1
        self.largest = max(self.largest, *map(abs, found))
        if self.left > 0 or self.largest > self.limit:
            return None
        return (
            f"teacher and student have agreed on every token so far (largest difference {self.largest:.1g} nats); "
            "check that teacher_model and model are different models"
        )


class NoSignal(Guard):
    """The gradient norm, or else the standard deviation of the advantages, was at most `limit` in a whole window."""

    name = "no_signal"
    triggers = "the gradient norm stayed at or below this for a whole window"

    def check(self, metrics: Metrics) -> str | None:
        value = metrics.get("grad_norm", metrics.get("advantage/std"))
        mean = self.window.add(None if value is None else abs(value))  # DeepSpeed's norm is -1 after an overflow
        if mean is None or max(self.window.values) > self.limit:
            return None
        return (
            f"the gradient has been 0 for {counted(len(self.window.values), 'logged step')}; check that some weights "
            "are trained, that completions are not empty (completion_length), and that the teacher is another model"
        )


class ZeroSpread(Guard):
    """A reward function gave the completions of a prompt one reward, in a share of `limit` of a window's prompts."""

    name = "zero_spread"
    triggers = "in this share of prompts a reward function gives every completion the same reward"
    reads = "rewards"

    def __init__(self, limit: float, window: int) -> None:
        super().__init__(limit, window)
        self.windows: defaultdict[str, Window] = defaultdict(partial(Window, window))

    def check(self, metrics: Metrics) -> str | None:
        shares = {name: value for name, value in metrics.items() if name.endswith(ZERO_SPREAD_SHARE)}
        means = {name: self.windows[name].add(value) for name, value in shares.items()}
        found = [name.split("/")[1] for name, mean in means.items() if mean is not None and mean >= self.limit]
        if not found:
            return None
        return (
            f"{', '.join(found)} gave every completion of a prompt the same reward, in at least {self.limit:.0%} of "
            "the prompts, which teaches nothing there; try prompts that the student answers right only sometimes, or a "
            "larger num_generations, and see in samples.jsonl whether the reward function can read the answers"
        )


# A guard's limit is the field of VOPDConfig called "guard_" and its name; None turns it off.
GUARDS = (ReverseKL, Truncation, Length, Logprobs, LogprobsStop, SameTeacher, NoSignal, ZeroSpread)
MAY_STOP = tuple(guard.name for guard in GUARDS if guard is not LogprobsStop)


def check_guards(args: Any) -> None:
    """Raises ConfigurationError if guard_stop names a guard that does not exist or is off."""
    for name in args.guard_stop:
        check_known("guard in guard_stop:", name, MAY_STOP)
        if getattr(args, f"guard_{name}") is None:
            raise ConfigurationError(
                f"guard_stop names {name!r}, which guard_{name}=none turns off; remove one of the two"
            )


def watching(args: Any, *, rewarded: bool, scored: bool) -> list[str]:
    """The names of the guards that are on in a run and find there what they read.

    Args:
        args: a VOPDConfig.
        rewarded: whether the run has reward functions.
        scored: whether a server gives a teacher's scores: that of the sampled token for every estimator.
    """
    logged = {
        "every run": True,
        "divergence": args.chosen_estimator.needs.full_teacher or scored,
        "engine": args.use_vllm,
        "rewards": rewarded,
    }
    return [guard.name for guard in GUARDS if getattr(args, f"guard_{guard.name}") is not None and logged[guard.reads]]


def make_guards(args: Any) -> list[Guard]:
    """New guards: those that `args`, a VOPDConfig, leaves on."""
    limits = [(guard, getattr(args, f"guard_{guard.name}")) for guard in GUARDS]
    return [guard(limit, args.guard_window) for guard, limit in limits if limit is not None]


class GuardWatch(TrainerCallback):
    """Runs the guards on every logged training step. Logged metrics are the same on all ranks, so all agree.

    Args:
        stopping: ends the run for the guards in `args.guard_stop`.
    """

    def __init__(self, stopping: Stopping) -> None:
        self.stopping = stopping
        self._guards: Sequence[Guard] = ()
        self._troubled: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._guards, self._troubled = make_guards(args), set()
        for logs in state.log_history:  # of a resumed run: the guards see again what they had seen
            self._beginning(logs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Metrics, **kwargs: Any) -> None:
        for guard, message in self._beginning(logs):
            text = f"guard {guard.name} at step {state.global_step}: {message}"
            if guard.name in args.guard_stop or guard.name == LogprobsStop.name:
                self.stopping.end(GuardError(f"{text} (a checkpoint of this step was saved)"), control)
            elif state.is_world_process_zero:
                logger.warning("%s", text)
            if state.is_world_process_zero:
                record = {"step": state.global_step, "guard": guard.name, "message": message}
                append(Path(args.output_dir) / GUARDS_FILE, [record])

    def _beginning(self, logs: Metrics) -> list[tuple[Guard, str]]:
        """Each guard whose problem starts at this step, and its message."""
        if "loss" not in logs:  # an evaluation, or the summary of the run
            return []
        found = [(guard, guard.check(logs)) for guard in self._guards]
        begins = [(guard, text) for guard, text in found if text is not None and guard.name not in self._troubled]
        self._troubled = {guard.name for guard, text in found if text is not None}
        return begins

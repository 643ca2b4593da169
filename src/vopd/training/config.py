"""Settings of a training run, checked before anything is loaded."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import is_torch_bf16_gpu_available

from vopd.data.conversations import check_last_turn
from vopd.errors import ConfigurationError, Faults, check_at_least, check_known, counted
from vopd.estimators import ESTIMATORS, Estimator, find_estimator
from vopd.estimators.advice import WITH_FULL_ROWS
from vopd.evaluation.benchmarks import check_kind
from vopd.kernels import BACKENDS
from vopd.processes import check_launched, check_together
from vopd.secrets import is_secret
from vopd.teachers.ahead import SCORINGS
from vopd.teachers.server.settings import ServerSettings, check_server, own
from vopd.user_code import spelling_of

from .inherited import (
    check_inherited,
    check_optimizer,
    complete_best,
    elsewhere,
    own_errors,
    read_mappings,
)
from .inherited.sampling_rules import check_sampling
from .monitoring.guards import GUARDS, check_guards
from .monitoring.trackers import check_trackers
from .trl import DistillationConfig

_INHERITED = {entry.name: entry for entry in dataclasses.fields(DistillationConfig)}

# transformers renamed the field in the 5.2x series and warns about the older name.
_CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in _INHERITED else "gradient_checkpointing"


if TYPE_CHECKING:
    EstimatorOrName = str | Estimator
else:
    EstimatorOrName = str  # what HfArgumentParser and the options of `vopd train` read from text

_AT_LEAST_1 = ("loss_top_k", "max_prompt_length", "max_tokens_per_micro_batch", "num_generations", "guard_window")
_LEAST = {
    "metrics_every": 0,
    "samples_per_step": 0,
    "importance_cap": 1,  # the on-policy weight
    "teacher_server_retries": 0,
    **dict.fromkeys(_AT_LEAST_1, 1),
    **{f"eval_benchmark_{name}": 1 for name in ("steps", "samples", "limit", "max_new_tokens")},
}
_ABOVE_0 = ("loss_normalizer", *(f"teacher_server_{name}" for name in ("concurrency", "timeout", "deadline")))


def _default(name: str, value: Any) -> Any:
    """The inherited field `name` with another default and the same help text."""
    return field(default=value, metadata=_INHERITED[name].metadata)


@dataclass
class VOPDConfig(ServerSettings, DistillationConfig):
    """Settings of VOPDTrainer: every field of ``trl.DistillationConfig`` and ``transformers.TrainingArguments``, and
    the fields below.

    Args:
        estimator: the loss: a name in ``vopd.ESTIMATORS``, ``module:NAME`` for your own, or an ``Estimator``.
        loss_top_k: k, for estimators that need one; an error with the others. (``top_k`` is the sampler's.)
        loss_backend: backend of the fused loss: "torch", "triton" or "auto". "auto" is Triton on a CUDA device where it
            is installed and passes a short trial against torch, and torch otherwise.
        loss_normalizer: constant that divides the summed token losses of one optimizer step. The default, None, divides
            by the number of sampled tokens, which slightly favors short completions because the length is
            sampled too. ``batch size * max_completion_length`` is a neutral choice.
        chat_template: give texts the student's chat template too, as the user's turn. Conversations always get it, with
            the inherited chat_template_kwargs and those in the column of that name, which come first.
        thinking: turn the chat template's thinking mode on or off; None leaves it to the template.
        system_prompt: first turn of every conversation that has no system turn of its own.
        last_assistant_turn: what becomes of a conversation's last turn by the assistant: "drop" leaves it out, so that
            the student writes its own; "continue" lets the student continue it.
        max_tokens_per_micro_batch: cut a step's completions into micro-batches of at most so many tokens, prompts and
            padding included, instead of per_device_train_batch_size sequences; a longer sequence is alone. None is off.
        max_prompt_length: prompts with more tokens are dropped and counted, never truncated. None keeps all.
        importance_sampling: weight sampled tokens by min(p_trainer / p_rollout, importance_cap). The default, None,
            does so if the rollout engine reports log-probabilities: vLLM does, transformers' generate does not.
        importance_cap: largest importance weight. Capping a weight leaves a small bias.
        metrics_every: measure the exact reverse KL and the closed-form gradient variances every this many steps;
            0 never measures them.
        samples_per_step: completions written to samples.jsonl each step, with rewards and advantages per token.
        show_samples: how many of these to print in a table after each step.
        eval_benchmarks: benchmarks to measure accuracy on before, during and after training, named as in ``vopd eval``:
            math500, NAME=FILE, a file with problem and answer, reasoning_gym:NAME. Logged as eval_NAME_avg@k with the
            bounds of its 95 % confidence interval. Training is the same with and without.
        eval_benchmark_steps: measure every this many optimizer steps, and before the first and after the last.
        eval_benchmark_samples: k of avg@k: completions per question.
        eval_benchmark_limit: use only the first N questions of each benchmark; None uses all.
        eval_benchmark_max_new_tokens: length limit of these completions; None uses max_completion_length.
        eval_benchmark_kind: how the answers of files are graded: "math", "choice", "tags" or module:function; None
            decides by their columns.
        eval_benchmark_template: prompt template with {problem}; None uses the benchmark's own.
        eval_benchmark_chat_template: apply the chat template to the questions, with thinking and system_prompt; None
            does so if the training prompts get it.
        telemetry: let TRL report the kind of run to Hugging Face.
        teacher_server_url, teacher_failure, ...: settings of a teacher on a server, see ``ServerSettings``.
        num_generations: completions per prompt. A reward needs 2 or more to compare with each other. Each process's
            completions per step must be a multiple of it.
        reward_weights: one number per reward function, in nats per unit of reward; the teacher's log-ratios have
            weight 1. Default: 1 each.
        teacher_column: column of the dataset that names each row's teacher, if there are several.
        teacher_prompt_column: column with prompts for the teacher only, such as one with a hint; else the student's.
        teacher_offload: keep local teachers, and output heads of served ones, in host memory, and copy them to the
            device only to score: saves device memory, at one copy per micro-batch, or per step with teacher_scoring.
        teacher_scoring: when a teacher in this process scores: "micro_batch", each as it is trained on; "step", the
            whole generated batch at once, in fewer and larger forward passes, whose hidden states stay on the device
            until their micro-batch is trained on; "step_on_host", the same with the states in host memory.
        teacher_decay: d of the teacher "self:average", m <- d m + (1 - d) w after every step.
        reward_column: column of the dataset with the reference answers for the rewards "math" and "choice".
        guard_reverse_kl, guard_truncation, guard_length, guard_logprobs, guard_logprobs_stop, guard_same_teacher,
            guard_no_signal, guard_zero_spread: limits of the guards in ``guards.py``; None turns one off. Guards warn,
            but guard_logprobs_stop ends the run.
        guard_stop: guards that end the run instead of warning, with a checkpoint and exit code 7.
        guard_window: number of logged steps that guards average over.

    Defaults that differ from TRL's and transformers': no dropout (a rollout and its gradient must see the same
    policy), a NaN loss is not hidden, bf16 and gradient checkpointing only where an accelerator supports them, logs
    every step, no experiment trackers, vLLM on this host only. ``beta`` must not be set: the estimator chooses the
    objective.

    Raises:
        ConfigurationError: a value is out of range, or conflicts with another one.
    """

    estimator: EstimatorOrName = own(WITH_FULL_ROWS.estimator.name, "The loss: one of vopd.ESTIMATORS, or module:NAME.")
    loss_top_k: int | None = own(None, "k of the loss, for estimators that need one; not the sampler's top_k.")
    loss_backend: str = own("auto", "Backend of the loss: torch, triton, or auto (triton on a GPU where it works).")
    loss_normalizer: float | None = own(
        None, "Constant that divides a step's summed token losses. Default: the number of sampled tokens."
    )
    chat_template: bool = own(False, "Apply the student's chat template to texts too; conversations always get it.")
    thinking: bool | None = own(None, "Switch the chat template's thinking mode. Default: the template's own.")
    system_prompt: str | None = own(None, "System prompt of conversations that have none of their own.")
    last_assistant_turn: str = own(
        "drop", "A conversation's last turn by the assistant: drop it, or continue it with the student's tokens."
    )
    max_tokens_per_micro_batch: int | None = own(
        None, "Cut a step into micro-batches of at most N tokens with their padding. Default: by number of sequences."
    )
    max_prompt_length: int | None = own(None, "Drop and count prompts with more tokens; prompts are never truncated.")
    importance_sampling: bool | None = own(
        None, "Weight sampled tokens by p_trainer / p_rollout. Default: if the engine (vLLM) reports p_rollout."
    )
    importance_cap: float = own(2.0, "Largest importance weight.")
    metrics_every: int = own(1, "Measure exact reverse KL and gradient variances every N steps; 0 turns this off.")
    samples_per_step: int = own(2, "Completions to write to samples.jsonl each step.")
    show_samples: int = own(0, "Completions to print after each step; at most samples_per_step.")
    num_generations: int = own(1, "Completions per prompt; a reward needs 2 or more.")
    reward_weights: list[float] | None = own(
        None, "One weight per reward function, in nats per unit of reward. Default: 1 each."
    )
    reward_column: str = own("answer", "Column with the reference answers for the rewards math and choice.")
    teacher_column: str = own("teacher", "Column that names each row's teacher, if there are several.")
    teacher_prompt_column: str | None = own(None, "Column with prompts for the teacher only, such as with a hint.")
    teacher_offload: bool = own(False, "Keep a teacher, or the output head of one on a server, in host memory.")
    teacher_scoring: str = own(
        "micro_batch",
        "When a local teacher scores: each micro_batch, or a whole step (or step_on_host) in larger batches.",
    )
    teacher_decay: float = own(0.99, "Decay of the student's moving average, the teacher self:average.")
    eval_benchmarks: list[str] | None = own(
        None, "Benchmarks to measure accuracy on during training: math500, NAME=FILE, a file, reasoning_gym:NAME."
    )
    eval_benchmark_steps: int = own(100, "Measure accuracy every N steps, at the start and at the end.")
    eval_benchmark_samples: int = own(4, "Completions per question: k of avg@k.")
    eval_benchmark_limit: int | None = own(100, "Use only the first N questions of each benchmark; null uses all.")
    eval_benchmark_max_new_tokens: int | None = own(
        None, "Length limit of benchmark completions. Default: max_completion_length."
    )
    eval_benchmark_kind: str | None = own(
        None,
        "How to grade files: math, choice, tags (for <answer> tags) or module:function. Default: by their columns.",
    )
    eval_benchmark_template: str | None = own(
        None, "Prompt template of the benchmarks, with {problem}. Default: each benchmark's own."
    )
    eval_benchmark_chat_template: bool | None = own(
        None, "Apply the chat template to benchmark questions. Default: if the training prompts use it."
    )
    telemetry: bool = own(False, "Let TRL report the kind of run to Hugging Face.")
    guard_reverse_kl: float | None = own(3.0, "Warn if the reverse KL rises to this many times its lowest so far.")
    guard_truncation: float | None = own(0.95, "Warn if this share of completions is cut off at the length limit.")
    guard_length: float | None = own(3.0, "Warn if completions grow to this many times their initial length.")
    guard_logprobs: float | None = own(
        0.05, "Warn if log-probs of trainer and rollout engine differ by more than this on average, in nats/token."
    )
    guard_logprobs_stop: float | None = own(
        0.5, "End the run if these log-probs differ by more than this on average, in nats/token."
    )
    guard_same_teacher: float | None = own(1e-5, "Warn if teacher and student never differ by more than this, in nats.")
    guard_no_signal: float | None = own(1e-7, "Warn if the gradient norm stays at or below this.")
    guard_zero_spread: float | None = own(
        1.0, "Warn if a reward is the same for all completions of a prompt in this share of the prompts."
    )
    guard_stop: list[str] = field(
        default_factory=list,
        metadata={"help": "Guards that save a checkpoint and end the run instead of warning, such as reverse_kl."},
    )
    guard_window: int = own(10, "Number of logged steps that guards average over.")

    beta: float | None = field(default=None, metadata={"help": "Not used: `estimator` chooses the objective."})
    bf16: bool | None = _default("bf16", None)
    dataloader_pin_memory: bool | None = _default("dataloader_pin_memory", None)
    disable_dropout: bool = _default("disable_dropout", True)
    disable_tqdm: bool | None = _default("disable_tqdm", True)
    gradient_checkpointing: bool | None = _default("gradient_checkpointing", None)
    logging_nan_inf_filter: bool = _default("logging_nan_inf_filter", False)
    logging_steps: float = _default("logging_steps", 1)
    # In the parents' order, which HfArgumentParser depends on.
    report_to: None | str | list[str] = _default("report_to", "none")  # noqa: RUF036
    vllm_server_host: str = _default("vllm_server_host", "127.0.0.1")

    def __new__(cls, *given: Any, **named: Any) -> VOPDConfig:
        """Tell where an option of ``vopd train`` belongs in Python; dataclasses would raise a TypeError."""
        for name in named.keys() - cls.__dataclass_fields__.keys():
            raise ConfigurationError(f"VOPDConfig has no option {name!r}; {elsewhere(name, cls.__dataclass_fields__)}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        benchmarks = self.eval_benchmarks
        if isinstance(benchmarks, str | os.PathLike):
            benchmarks = os.fspath(benchmarks).split(",")
        self.eval_benchmarks = benchmarks and [os.fspath(name).strip() for name in benchmarks]
        faults = Faults()
        for check in (
            partial(read_mappings, self, self._VALID_DICT_FIELDS),  # first: the others read them
            self._check_estimator,
            self._check_ranges,
            partial(check_inherited, self),
            partial(check_guards, self),
            partial(check_trackers, self.report_to),
            partial(check_kind, self.eval_benchmark_kind),
        ):
            faults.check(check)
        accelerated = not self.use_cpu and torch.accelerator.is_available()
        if self.bf16 is None:
            self.bf16 = accelerated and not self.fp16 and _supports_bf16()
        if self.dataloader_pin_memory is None:
            self.dataloader_pin_memory = accelerated
        if getattr(self, _CHECKPOINTING) is None and self.gradient_checkpointing is None:
            setattr(self, _CHECKPOINTING, accelerated)
        faults.check(self._check_device, accelerated)
        faults.check(check_launched, self)
        if faults.found:  # transformers would raise for the same values, or keep them for the whole process
            faults.check(check_sampling, self)
            faults.check(check_server, self)
            faults.tell()
        complete_best(self)
        self.beta = 1.0  # passes TRL's own check
        with own_errors():
            super().__post_init__()
        self.beta = None  # so that a saved configuration loads again
        for check_all in (check_optimizer, _check_processes, check_sampling, check_server, VOPDConfig._check_groups):
            faults.check(check_all, self)
        faults.tell()

    @property
    def chosen_estimator(self) -> Estimator:
        """The estimator that ``estimator`` names or is."""
        return find_estimator(self.estimator)

    @property
    def step_completions(self) -> int:
        """Completions per optimizer step over all processes: TRL generates for all its micro-batches at once."""
        return int(self.per_device_train_batch_size * self.world_size * self.gradient_accumulation_steps)

    @property
    def step_prompts(self) -> int:
        """Prompts per optimizer step over all processes."""
        return self.step_completions // self.num_generations

    def steps_of(self, prompts: int) -> int:
        """Optimizer steps of a run on so many prompts."""
        epoch = prompts // self.step_prompts
        return int(self.max_steps if self.max_steps > 0 else math.ceil(self.num_train_epochs * epoch))

    def _check_estimator(self) -> None:
        chosen = self.chosen_estimator
        if chosen.needs_top_k and self.loss_top_k is None:
            raise ConfigurationError(f"estimator {chosen.name!r} needs loss_top_k, for example loss_top_k=20")
        if not chosen.needs_top_k and self.loss_top_k is not None:
            users = ", ".join(name for name, estimator in ESTIMATORS.items() if estimator.needs_top_k)
            raise ConfigurationError(
                f"loss_top_k={self.loss_top_k} has no effect with estimator {chosen.name!r}; remove it, or choose "
                f"an estimator that uses it: {users}"
            )
        if self.importance_sampling and not self.use_vllm:
            raise ConfigurationError(
                "importance_sampling needs a rollout engine that reports log-probabilities; set use_vllm=true, or "
                "remove importance_sampling: without vLLM, rollouts come from the trained student itself"
            )
        if self.importance_sampling and not chosen.samples:
            raise ConfigurationError(
                f"importance_sampling has no effect with estimator {chosen.name!r}, whose token loss does not depend "
                "on the sampled token; remove it"
            )

    def _check_groups(self) -> None:
        # Rewards are compared within a process, and all accumulated micro-batches of a step are generated at once.
        of_process = self.per_device_train_batch_size * self.gradient_accumulation_steps
        if of_process % self.num_generations:
            raise ConfigurationError(
                f"per_device_train_batch_size * gradient_accumulation_steps = {counted(of_process, 'completion')} per "
                f"process must be a multiple of num_generations={self.num_generations}, so that no group is split"
            )

    def _check_device(self, accelerated: bool) -> None:
        if self.fp16 and not accelerated:
            raise ConfigurationError("fp16 has no effect without a GPU; remove it, or set bf16=true")
        if self.bf16 and not self.use_cpu and not is_torch_bf16_gpu_available():
            raise ConfigurationError(
                "bf16=true needs a GPU that has bf16; set use_cpu=true as well to train on a CPU, or bf16=false"
            )

        if self.use_cpu and self.loss_backend == "triton" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ConfigurationError("loss_backend=triton needs a GPU, but use_cpu is set; use loss_backend=auto")

    def _check_ranges(self) -> None:
        faults = Faults()
        for name, least in _LEAST.items():
            faults.check(check_at_least, name, getattr(self, name), least)
        for name in (*_ABOVE_0, *(f"guard_{guard.name}" for guard in GUARDS)):
            value = getattr(self, name)
            if value is not None and not value > 0:
                off = ", or none to turn it off" if name.startswith("guard_") else ""
                faults.add(ConfigurationError(f"{name} must be positive{off}, got {value}"))
        faults.check(check_known, "loss_backend", self.loss_backend, BACKENDS)
        faults.check(check_known, "teacher_scoring", self.teacher_scoring, SCORINGS)
        faults.check(check_last_turn, self.last_assistant_turn)
        faults.check(self._check_others)
        faults.tell()

    def _check_others(self) -> None:
        if not 0 <= self.show_samples <= max(0, self.samples_per_step):
            raise ConfigurationError(
                f"show_samples must be between 0 and samples_per_step={self.samples_per_step}, got {self.show_samples}"
            )
        if self.max_completion_length is None:
            raise ConfigurationError(
                "max_completion_length must be set: without it, generation stops at 20 tokens; the default is 512"
            )
        if not 0 < self.teacher_decay < 1:
            raise ConfigurationError(f"teacher_decay must be between 0 and 1, got {self.teacher_decay}")

    def to_dict(self) -> dict[str, Any]:
        """As in the parent classes, without the access tokens that keyword arguments of the models may hold."""
        return self._writable(super().to_dict())

    def __getstate__(self) -> dict[str, Any]:
        # Every checkpoint holds a pickle of the arguments, training_args.bin, which must not leak a token.
        return self._writable(self.__dict__)

    def __copy__(self) -> VOPDConfig:
        """Unlike a pickle, keeps access tokens and functions."""
        copied: VOPDConfig = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> VOPDConfig:
        copied = copy.copy(self)
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def _writable(self, values: dict[str, Any]) -> dict[str, Any]:
        """`values` without tokens, and with the estimator's name: no file can hold a function."""
        chosen = self.estimator
        if isinstance(chosen, Estimator):
            chosen = spelling_of(chosen) or chosen.name
        return {**_without_tokens(values), "estimator": chosen}


def _check_processes(config: VOPDConfig) -> None:
    # accelerate may connect processes and still combine nothing, as with ddp_backend=gloo without use_cpu.
    check_together(config.world_size if config.parallel_mode.value == "distributed" else 1, os.environ)


def _supports_bf16() -> bool:
    return torch.cuda.is_bf16_supported() if torch.cuda.is_available() else not torch.backends.mps.is_available()


def _without_tokens(values: dict[str, Any]) -> dict[str, Any]:
    """A copy of nested `values` in which every entry whose name says that it is a secret is None."""
    known = {name: None if is_secret(str(name)) else value for name, value in values.items()}
    return {name: _without_tokens(value) if isinstance(value, dict) else value for name, value in known.items()}

"""What a run is going to do, as one block of lines: `vopd train --dry-run` and the start of every training show it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vopd.errors import counted
from vopd.kernels import Head
from vopd.models import described_head, device_name
from vopd.placement import Placement, described
from vopd.processes import remark
from vopd.secrets import without_passwords
from vopd.teachers.build import Served
from vopd.teachers.columns import DEFAULT
from vopd.teachers.itself import ADAPTER_OFF, AVERAGE, FROZEN
from vopd.teachers.local import LocalTeacher
from vopd.teachers.server.settings import AUTO, HIDDEN_STATES, SCORES
from vopd.teachers.server.teacher import ServerStates, ServerTeacher

from ..config import VOPDConfig
from ..models import rollout_server
from .guards import LogprobsStop, watching

if TYPE_CHECKING:
    from ..trainer import VOPDTrainer


@dataclass(frozen=True)
class Gives:
    """What a teacher behind a server gives.

    Attributes:
        payload: scores, hidden_states, or auto for a server that is not asked yet.
        head: the output head here for hidden states.
    """

    payload: str = SCORES
    head: Head | None = None


@dataclass(frozen=True)
class Start:
    """What is known of a run before its first step, beyond its settings.

    Attributes:
        placement: processes, device and launcher.
        student: its path or hub id.
        teachers: by name, as `vopd.teachers.build.sources` returns them.
        student_size: its parameters in words.
        teacher_sizes: the same by teacher name, for the teachers in the training process.
        teachers_give: what the teachers behind servers give, by name.
        backend: what computes the loss.
        rewards: the reward functions in words; empty without any.
        prompts: number of training prompts.
        dropped: how many more there were, longer than max_prompt_length.
        steps: of the whole run.
        done: steps that were taken before this process resumed the run.
    """

    placement: Placement
    student: str
    student_size: str
    teachers: Mapping[str, Any]
    teacher_sizes: Mapping[str, str]
    teachers_give: Mapping[str, Gives]
    backend: str
    rewards: str
    prompts: int
    dropped: int
    steps: int
    done: int = 0


def first_lines(config: VOPDConfig, start: Start) -> list[str]:
    """The block: one aligned row per fact, with the number of sampled tokens as an upper bound."""
    rows = {
        "device": _device(start.placement),
        "student": _model(start.student, start.student_size),
        **_teachers(config, start),
        "prompts": _prompts(config, start),
        "each step": _step(config),
        "steps": _steps(config, start),
        "loss": _loss(config, start),
        "rollouts": _rollouts(config),
        "rewards": start.rewards,
        "guards": _guards(config, start),
        "run folder": config.output_dir,
        "watch it": f"vopd report {shlex.quote(str(config.output_dir))} --watch",
    }
    width = max(map(len, rows))
    return [f"{name:<{width}}  {text}" for name, text in rows.items() if text]


def start_of(trainer: VOPDTrainer) -> Start:
    """The start of a trainer whose models are where training has put them."""
    placement, teachers = trainer.placement, trainer.teachers

    def size(model: Any) -> str:
        unwrapped = placement.unwrap(model)
        return described(unwrapped, placement.accelerator.device, placement.accelerator.num_processes)

    placed = {name: entry.teacher for name, entry in teachers.placed.items()}
    return Start(
        placement=placement,
        student=trainer.model.name_or_path or type(trainer.model).__name__,
        student_size=size(trainer.model_wrapped),
        teachers=trainer.sources,
        teacher_sizes={name: size(one.model) for name, one in placed.items() if isinstance(one, LocalTeacher)},
        teachers_give={name: _gives(one) for name, one in placed.items() if isinstance(one, ServerTeacher)},
        backend=trainer.loss_backend,
        rewards=trainer.rewards.summary,
        prompts=len(trainer.train_dataset),
        dropped=trainer.prompts_dropped,
        steps=trainer.state.max_steps,
        done=trainer.state.global_step,
    )


def _gives(teacher: ServerTeacher[Any]) -> Gives:
    return Gives(HIDDEN_STATES, teacher.head) if isinstance(teacher, ServerStates) else Gives()


def tokens_in_words(number: int) -> str:
    """Return "512 tokens", "13.1 million tokens"."""
    return f"{number / 1e6:.1f} million tokens" if number >= 10**6 else counted(number, "token")


def _device(placement: Placement) -> str:
    accelerator = placement.accelerator
    count, machines = accelerator.num_processes, int(os.environ.get("GROUP_WORLD_SIZE", "1"))  # torchrun's agents
    processes = counted(count, "process", "processes")
    if machines > 1:
        processes += f" on {machines} machines"
    if count > 1 or placement.managed:
        processes += f" ({placement.launcher})"
    if why := remark(count, os.environ):
        processes += f" ({why})"
    precision = accelerator.mixed_precision
    return f"{device_name(accelerator.device)}, {processes}, {'no' if precision == 'no' else precision} mixed precision"


def _model(name: str, size: str | None) -> str:
    return name if size is None else f"{name}, parameters: {size}"


def _teachers(config: VOPDConfig, start: Start) -> dict[str, str]:
    """A row per teacher."""
    return {
        "teacher" if name == DEFAULT else f"teacher {name}": _served(source, start.teachers_give[name], config)
        if isinstance(source, Served)
        else _model(_teacher(source, config), start.teacher_sizes.get(name))
        for name, source in start.teachers.items()
    }


def _served(source: Served, gives: Gives, config: VOPDConfig) -> str:
    """A teacher behind a server, and what it gives."""
    urls = [source.urls] if isinstance(source.urls, str) else source.urls
    where = f"server at {', '.join(map(without_passwords, urls))}"
    if gives.head is None:
        return f"{where}, scores" + (f", tokenizer of {source.path}" if source.path is not None else "")
    states = f"hidden states ({config.teacher_server_dtype})"
    kept = "here, on the host between losses" if config.teacher_offload else "here"
    head = f"output head of {source.path} {kept}: {described_head(gives.head)}"
    asked = "; or scores, which the server is asked at the start" if gives.payload == AUTO else ""
    return f"{where}, {states}, {head}{asked}"


def _teacher(source: Any, config: VOPDConfig) -> str:
    itself = {
        FROZEN: "the student as it was before training",
        ADAPTER_OFF: "the student without its adapter",
        AVERAGE: f"a moving average of the student, decay {config.teacher_decay:g}",
    }
    if isinstance(source, str):
        return f"{source}, {itself[source]}" if source in itself else source
    return str(source.name_or_path) or type(source).__name__


def _prompts(config: VOPDConfig, start: Start) -> str:
    dropped = f" ({start.dropped:,} more dropped: longer than max_prompt_length={config.max_prompt_length})"
    return f"{start.prompts:,}" + (dropped if start.dropped else "")


def _step(config: VOPDConfig) -> str:
    completions = config.step_completions
    each = f" x {counted(config.num_generations, 'completion')}" if config.num_generations > 1 else ""
    tokens = tokens_in_words(completions * config.max_completion_length)
    budget = config.max_tokens_per_micro_batch
    batches = f"{config.gradient_accumulation_steps} x {config.per_device_train_batch_size}"
    batches = batches if budget is None else f"at most {budget:,} tokens each, or one sequence"
    return f"{counted(config.step_prompts, 'prompt')}{each}, at most {tokens} (micro-batches: {batches})"


def _steps(config: VOPDConfig, start: Start) -> str:
    epoch = start.prompts // config.step_prompts  # prompts that do not fill a last step are left out
    tokens = start.steps * config.step_completions * config.max_completion_length
    resumed = f", resuming after step {start.done:,}" if start.done else ""
    return f"{start.steps:,} ({epoch:,} per epoch){resumed}, at most {tokens_in_words(tokens)} in all"


def _loss(config: VOPDConfig, start: Start) -> str:
    k = f" with loss_top_k={config.loss_top_k}" if config.loss_top_k is not None else ""
    return f"{config.chosen_estimator.name}{k}, {start.backend} on {config.device.type}"


def _rollouts(config: VOPDConfig) -> str:
    if not config.use_vllm:
        return "transformers, in the training process"
    if config.vllm_mode == "colocate":
        return f"vLLM, in the training process with {config.vllm_gpu_memory_utilization:.0%} of the GPU's memory"
    return f"vLLM server at {rollout_server(config)}"


def _guards(config: VOPDConfig, start: Start) -> str:
    """How many watch the run, and those that stop it."""
    scored = any(gives.payload != HIDDEN_STATES for gives in start.teachers_give.values())
    names = watching(config, rewarded=bool(start.rewards), scored=scored)
    stopping = [name for name in names if name in config.guard_stop or name == LogprobsStop.name]
    stops = f"{', '.join(stopping)} can stop the run" if stopping else "none stops the run"
    return f"{len(names) - len(stopping)} warn, {stops}"

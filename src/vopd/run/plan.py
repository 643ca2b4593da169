"""The options of `vopd train` and `vopd validate`, their defaults, and the checks that need nothing but them."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vopd.data.prompts import TEACHER_PROMPT
from vopd.errors import ConfigurationError, Faults, VOPDError, check_at_least, check_known
from vopd.estimators import find_estimator
from vopd.evaluation.benchmarks import check_kind
from vopd.kernels import backend_name
from vopd.models.adapters import QUANTIZED
from vopd.models.loading import BITS, DTYPES
from vopd.teachers.build import Served, check_sources, sources
from vopd.teachers.itself import check_self, check_worth, is_self
from vopd.training import VOPDConfig
from vopd.training.inherited import only_in_python
from vopd.training.rewards.functions import Rewards
from vopd.training.saving.contract import Change

from . import directory
from .lora import check_lora_options
from .option_files import CHOSEN_HERE, RESOLVED, to_yaml
from .options import Option, Settings, needed, options_of, parse, setting

T = TypeVar("T")

# Fields of the trainer's configuration that --help lists; all the others are accepted as well.
MAIN_FIELDS = (
    "estimator", "loss_top_k", "loss_backend", "num_generations", "reward_weights", "loss_normalizer",
    "chat_template", "thinking", "system_prompt", "last_assistant_turn",
    "max_prompt_length", "max_completion_length", "temperature",
    "learning_rate", "lr_scheduler_type", "warmup_steps", "per_device_train_batch_size",
    "gradient_accumulation_steps", "num_train_epochs", "max_steps", "max_grad_norm", "bf16",
    "gradient_checkpointing", "teacher_server_url", "teacher_failure",
    "use_vllm", "vllm_mode", "metrics_every", "samples_per_step",
    "eval_benchmarks", "eval_benchmark_steps", "eval_benchmark_samples", "eval_benchmark_limit", "save_steps",
    "save_total_limit", "logging_steps", "report_to", "seed",
)  # fmt: skip
# Help texts in place of those that TRL and transformers have for the same fields.
_TEXTS = {
    "temperature": "Temperature of sampling and of the loss.",
    "learning_rate": "Learning rate after warm-up, from which the schedule starts.",
    "lr_scheduler_type": "Learning rate schedule: linear, cosine, constant, or another one of transformers.",
    "warmup_steps": "Steps of linear warm-up from 0 to learning_rate; below 1: a share of all steps.",
    "per_device_train_batch_size": "Completions per micro-batch on each device.",
    "gradient_accumulation_steps": "Micro-batches per optimizer step on each device.",
    "num_train_epochs": "Number of passes over the prompts.",
    "max_steps": "Number of optimizer steps; above 0 it overrides num_train_epochs.",
    "max_grad_norm": "Clip the gradient to this norm; 0 turns clipping off.",
    "bf16": "Train in bf16 mixed precision. Default: on a GPU that supports it.",
    "gradient_checkpointing": "Recompute activations in the backward pass to save memory. Default: on a GPU.",
    "use_vllm": "Generate the student's completions with vLLM.",
    "vllm_mode": "colocate: vLLM in the training process; server: a separate vLLM server.",
    "save_steps": "Save a checkpoint every N optimizer steps; below 1: a share of all steps.",
    "logging_steps": "Log every N optimizer steps; below 1: a share of all steps.",
    "report_to": "Trackers to log to, such as wandb, tensorboard, trackio; none logs to files only.",
    "seed": "Random seed of the run.",
}
# Options that decide what is checked of models and prompts: these checks are made even if other options are wrong.
_OF_FACTS = (
    "model", "model_revision", "teacher_model", "teacher_model_revision", "teachers", "output_dir", "run_name",
    "resume", "dry_run", "dataset", "dataset_split", "dataset_revision", "dataset_options", "max_prompts",
    "prompt_template", "teacher_prompt_template", "reward_funcs",
    "chat_template", "thinking", "system_prompt", "last_assistant_turn", "chat_template_kwargs",
    "max_prompt_length", "max_completion_length", "per_device_train_batch_size", "gradient_accumulation_steps",
    "num_generations", "reward_weights", "reward_column", "teacher_column", "teacher_prompt_column",
    "teacher_server_url", "teacher_server_payload", "seed", "eval_benchmarks", "eval_benchmark_limit", "use_cpu",
)  # fmt: skip
_MORE = (
    "\nThe other fields of trl.DistillationConfig and transformers.TrainingArguments are options too; those that do\n"
    "not fit are refused with the reason. In option names, - and _ are the same. The default is in brackets.\n"
)


@dataclass
class TrainOptions:
    """What `vopd train` needs besides the trainer's configuration."""

    model: str = needed("student: folder or hub id of a model, or of an adapter to train further")
    dataset: str | list = needed(
        "prompts: a file (.jsonl, .json, .csv, .tsv, .parquet, also gzipped), a pattern such as data/*.jsonl, folder, "
        "a hub id, reasoning_gym:NAME, or several"
    )
    teacher_model: str | None = setting(
        None,
        "teacher: folder or hub id, with the student's vocabulary; or self:frozen, self:base, self:average; with "
        "teacher_server_url only its tokenizer and its output head",
    )
    teachers: dict | None = setting(
        None,
        "several teachers, {name: folder, hub id, URL or {server_url: URL, model: folder or id}}; each row names one",
    )
    output_dir: str = setting("runs", "parent folder of all runs")
    run_name: str | None = setting(None, "folder of this run in output_dir; default: student and estimator")
    resume: bool = setting(False, "resume this run from its newest valid checkpoint; without one, start it")
    dry_run: bool = setting(False, "show what the run would do, its prompts, memory and disk space; load no weights")
    dataset_split: str = setting("train", "split of a hub dataset or of a folder")
    dataset_revision: str | None = setting(None, "branch, tag or commit of a hub dataset")
    dataset_options: dict | None = setting(
        None, "options of a reasoning_gym task; arguments of datasets.load_dataset such as name, field or delimiter"
    )
    max_prompts: int | None = setting(None, "use only the first N prompts; reasoning_gym: generate N")
    prompt_template: str | None = setting(None, "prompt text, with {column} for a column; or '{column}' alone")
    teacher_prompt_template: str | None = setting(
        None, "prompt text for the teacher only, with {column}, such as one with a reference solution"
    )
    model_revision: str | None = setting(None, "branch, tag or commit of the student on the hub")
    teacher_model_revision: str | None = setting(None, "branch, tag or commit of the teacher on the hub")
    dtype: str = setting("float32", "dtype of the student's weights: float32, bfloat16, float16, auto")
    teacher_dtype: str = setting("auto", "dtype of the teacher's weights; auto: as saved")
    quantization: str | None = setting(None, "load the student in 8bit or 4bit; needs lora_rank (QLoRA)")
    teacher_quantization: str | None = setting(None, "load the teacher in 8bit or 4bit")
    lora_rank: int = setting(0, "train a LoRA adapter of this rank; 0 trains all weights")
    lora_alpha: int | None = setting(None, "LoRA scaling is lora_alpha / lora_rank; default: twice the rank")
    lora_target_modules: list[str] = setting(["all-linear"], "modules that get an adapter; never the output head")
    reward_funcs: list[str] = setting(
        [], "rewards added to the teacher's signal: math, choice, tags, reasoning_gym, or module:function of your own"
    )
    push_to_hub: bool = setting(
        False, "upload the trained model to hub_model_id, private unless hub_private_repo=false"
    )
    eval_task: str | None = setting(None, "measure accuracy before and after training on reasoning_gym:NAME")
    eval_data: str | None = setting(
        None, "measure accuracy before and after training on data with problem and answer, named as dataset"
    )
    eval_kind: str | None = setting(
        None,
        "how to grade eval_data: math, choice, tags (for <answer> tags) or module:function; default: by its columns",
    )
    eval_count: int | None = setting(None, "number of problems; default: 100 of eval_task, all of eval_data")
    eval_task_options: dict | None = setting(None, "options of eval_task, such as {min_terms: 2}")
    eval_template: str | None = setting(None, "prompt text for these problems; default: prompt_template")
    eval_max_new_tokens: int | None = setting(None, "length limit for these problems; default: max_completion_length")
    eval_seed: int = setting(
        0, "seed of eval_task's problems; use another one than seed, which generates the training problems"
    )

    def __post_init__(self) -> None:
        faults = Faults()
        for dtype in (self.dtype, self.teacher_dtype):
            faults.check(check_known, "dtype", dtype, DTYPES)
        for quantization in filter(None, (self.quantization, self.teacher_quantization)):
            faults.check(check_known, "quantization", quantization, BITS)
        faults.check(check_at_least, "lora_rank", self.lora_rank, 0)
        faults.check(check_at_least, "lora_alpha", self.lora_alpha, 1)
        faults.check(self._check_pairs)
        faults.tell()

    def _check_pairs(self) -> None:
        """Raises ConfigurationError for an option that another one rules out."""
        check_kind(self.eval_kind)
        if self.eval_task is not None and self.eval_data is not None:
            raise ConfigurationError("eval_task and eval_data both name problems; give only one of them")


@dataclass(frozen=True)
class Plan:
    """A run that was asked for: its options, the trainer's configuration, the origin of every setting, its folder, its
    teachers by name (`vopd.teachers.build.sources`), and the command that resumes it."""

    options: TrainOptions
    config: VOPDConfig
    settings: Settings
    folder: Path
    teachers: dict[str, Any]
    resumption: str


def read_plan(command: str, summary: str, arguments: Sequence[str], faults: Faults) -> Plan | None:
    """Read the command line and its configuration file into a plan. Loads and writes nothing.

    Args:
        faults: what is wrong is added to them. The plan is then good only for further checks, of models and prompts:
            other settings of the trainer are left out.

    Returns:
        The plan; None if there is too little for further checks.
    """
    known = train_options()
    settings = parse(command, summary + _MORE, known, arguments, faults)
    options = _build(settings, TrainOptions, faults)
    for name, fault in only_in_python(settings.values).items():
        faults.add(fault)
        settings = settings.without(name)
    estimator = faults.check(find_estimator, settings.values["estimator"])
    if options is None:
        return None
    names = options.model or "", "" if estimator is None else estimator.name
    folder = faults.check(directory.run_directory, options.output_dir, options.run_name, *names)
    folder = folder or Path(options.output_dir, "unnamed")  # only to check that it can be written to
    # transformers would upload the whole run folder with samples and settings; only the model is uploaded, at the end.
    fixed: dict[str, Any] = {"output_dir": str(folder), "run_name": folder.name, "push_to_hub": False}
    if options.teacher_prompt_template is not None:
        if settings.values["teacher_prompt_column"] not in (None, TEACHER_PROMPT):
            faults.add(ConfigurationError("give teacher_prompt_column or teacher_prompt_template, not both"))
        fixed["teacher_prompt_column"] = TEACHER_PROMPT
    config = _build(settings, VOPDConfig, faults, **fixed)
    if config is None or options.model is None or options.dataset is None:
        return None
    teachers = _teachers(options, config, faults)
    return Plan(options, config, settings, folder, teachers, _resumption(arguments, options.resume))


def _build(settings: Settings, target: type[T], faults: Faults, **fixed: Any) -> T | None:
    """Build `target`; if settings are wrong, without those that checks of models and prompts do not need."""
    built = faults.check(settings.build, target, **fixed)
    if built is None:
        with suppress(VOPDError):
            return settings.only(_OF_FACTS).build(target, **fixed)
    return built


def _teachers(options: TrainOptions, config: VOPDConfig, faults: Faults) -> dict[str, Any]:
    """The teachers by name; checks them, the rewards, and what options need of each other."""
    rewards = faults.check(Rewards.of, config, options.reward_funcs)
    teachers = faults.check(sources, options.teacher_model, options.teachers, config.teacher_server_url) or {}
    if rewards is not None:
        faults.check(check_worth, teachers, config.teacher_prompt_column, bool(rewards.names))
    if faults.found:  # the option that another one needs may have been left out with those that are wrong
        return teachers
    if options.quantization is not None and config.use_vllm:
        faults.add(ConfigurationError(QUANTIZED))
    if options.push_to_hub and not config.hub_model_id:
        faults.add(ConfigurationError("push_to_hub needs hub_model_id, such as hub_model_id=me/my-model"))
    faults.check(check_sources, config, teachers)
    if all(isinstance(teacher, Served) for teacher in teachers.values()):
        for name in ("teacher_dtype", "teacher_quantization"):
            if getattr(options, name) not in (None, "auto"):
                faults.add(ConfigurationError(f"{name} has no effect on a teacher on a server; remove it"))
    adapts = faults.check(check_lora_options, options)
    for teacher in filter(is_self, teachers.values()) if adapts is not None else ():
        faults.check(check_self, teacher, adapters=adapts, in_an_engine=False)
    return teachers


def _resumption(arguments: Sequence[str], resumes: bool) -> str:
    """The command as typed, with --resume; a launcher's own options are not known."""
    launcher = "accelerate launch -m " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    return f"{launcher}{shlex.join(['vopd', 'train', *arguments, *([] if resumes else ['--resume'])])}"


def train_options() -> dict[str, Option]:
    """Return the options of `vopd train`: its own first, then those of the trainer's configuration."""
    own = options_of(TrainOptions, group="models, prompts, run")
    config = options_of(VOPDConfig, group="method and optimizer", shown=MAIN_FIELDS)
    config |= {name: dataclasses.replace(config[name], text=text) for name, text in _TEXTS.items()}
    return own | (config | own)


def write_resolved(plan: Plan, changes: Iterable[Change] = ()) -> None:
    """Write every setting with its origin; a default that depends on the machine is written as the value chosen.

    A setting that changed when the run was resumed has a remark with its earlier value.
    """
    values: dict[str, Any] = {**plan.settings.values, "run_name": plan.folder.name}
    for name in ("resume", "dry_run"):  # they say how vopd was called, not what the run is
        del values[name]
    origins = dict(plan.settings.origins)
    for name, value in values.items():
        chosen = getattr(plan.config, name, None)
        if value is None and origins[name] == "default" and isinstance(chosen, bool | int | float | str):
            values[name], origins[name] = chosen, CHOSEN_HERE
    if values["loss_backend"] == "auto":
        origins["loss_backend"] += f", {backend_name('auto', plan.config.device)} on this machine"
    for change in changes:
        if change.name in origins:
            origins[change.name] += f", {change.remark()}"
    (plan.folder / RESOLVED).write_text(to_yaml(values, origins), encoding="utf-8")

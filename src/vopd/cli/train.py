"""`vopd train`: models, prompts and settings in, a run directory with a trained model out."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vopd.cli import run_directory
from vopd.cli.accuracy import Accuracy
from vopd.cli.eval import EvalOptions
from vopd.cli.options import CHOSEN_HERE, Option, Settings, needed, options_of, parse, setting, to_yaml
from vopd.errors import ConfigurationError, VOPDError, require

logger = logging.getLogger(__name__)

SUMMARY = """\
Train a student to match a teacher on the student's own samples.

Writes OUTPUT_DIR/RUN_NAME with resolved_config.yaml, metrics.jsonl, samples.jsonl, checkpoints and, at the end,
model/ (safetensors) and report.html. On several GPUs: accelerate launch -m vopd train ...
"""

# Fields of the trainer's configuration that the help shows; all the others are accepted as well.
_MAIN_FIELDS = (
    "estimator", "loss_top_k", "loss_normalizer", "max_prompt_length", "max_completion_length", "temperature",
    "learning_rate", "lr_scheduler_type", "warmup_steps", "per_device_train_batch_size",
    "gradient_accumulation_steps", "num_train_epochs", "max_steps", "max_grad_norm", "bf16",
    "gradient_checkpointing", "use_vllm", "vllm_mode", "metrics_every", "samples_per_step", "save_steps",
    "save_total_limit", "logging_steps", "report_to", "seed",
)  # fmt: skip
# Fields of the trainer's configuration that would do nothing here, and what does their work.
_ELSEWHERE = {
    "trust_remote_code": "vopd never runs code from a model's repository",
    "model_init_kwargs": "set dtype and model_revision",
    "teacher_model_init_kwargs": "set teacher_dtype and teacher_model_revision",
    "teacher_model_name_or_path": "set teacher_model",
    "resume_from_checkpoint": "set resume, which takes the run's last checkpoint",
}
_MORE = "\nEvery other field of trl.DistillationConfig and transformers.TrainingArguments is accepted too.\n"


@dataclass
class TrainOptions:
    """What `vopd train` needs besides the trainer's configuration."""

    model: str = needed("student: folder or hub id")
    teacher_model: str = needed("teacher: folder or hub id, with the student's vocabulary")
    dataset: str | list = needed("prompts: .jsonl, .json or .parquet file, hub id, reasoning_gym:NAME, or several")
    output_dir: str = setting("runs", "folder of all runs")
    run_name: str | None = setting(None, "folder of this run in output_dir; default: from models and estimator")
    resume: bool = setting(False, "continue the run of this name from its last checkpoint")
    dataset_split: str = setting("train", "split of a hub data set")
    dataset_revision: str | None = setting(None, "branch, tag or commit of a hub data set")
    dataset_options: dict | None = setting(None, "options of a reasoning_gym task, or of datasets.load_dataset")
    max_prompts: int | None = setting(None, "use only the first N prompts; for reasoning_gym make N")
    prompt_template: str | None = setting(None, "prompt text, with {column} for a column of the data set")
    chat_template: bool = setting(False, "put prompts into the student's chat template")
    thinking: bool | None = setting(None, "turn the chat template's thinking on or off; default: as it chooses")
    model_revision: str | None = setting(None, "branch, tag or commit of the student on the hub")
    teacher_model_revision: str | None = setting(None, "branch, tag or commit of the teacher on the hub")
    dtype: str = setting("float32", "of the student's weights: float32, bfloat16, float16, auto")
    teacher_dtype: str = setting("auto", "of the teacher's weights; auto is as saved")
    lora_rank: int = setting(0, "train LoRA adapters of this rank; 0 trains every weight")
    lora_alpha: int | None = setting(None, "scale of the adapters is lora_alpha / lora_rank; default: twice the rank")
    lora_target_modules: list[str] = setting(["all-linear"], "modules with adapters; never the output head")
    eval_task: str | None = setting(None, "measure accuracy before and after on reasoning_gym:NAME")
    eval_data: str | None = setting(None, "measure accuracy before and after on a file with problem and answer")
    eval_kind: str = setting("math", "how the answers of eval_data are graded: math or choice")
    eval_count: int | None = setting(None, "problems of eval_task (100), or the first N of eval_data")
    eval_task_options: dict | None = setting(None, "options of eval_task, such as {min_terms: 2}")
    eval_template: str | None = setting(None, "prompt text of these problems; default: prompt_template")
    eval_max_new_tokens: int | None = setting(None, "their length limit; default: max_completion_length")
    eval_seed: int = setting(0, "of eval_task's problems; another than seed, whose problems are trained on")

    def __post_init__(self) -> None:
        if self.lora_rank < 0:
            raise ConfigurationError(f"lora_rank must be 0 or above, got {self.lora_rank}")
        if self.lora_rank == 0 and self.lora_alpha is not None:
            raise ConfigurationError("lora_alpha needs lora_rank, for example lora_rank=64")
        if self.eval_task is not None and self.eval_data is not None:
            raise ConfigurationError("eval_task and eval_data are two sources of problems; give one of them")


def run(arguments: Sequence[str]) -> int:
    """Run `vopd train` with these arguments and return its exit code."""
    require("trl", "train")
    require("transformers", "train").utils.logging.disable_progress_bar()
    from vopd.training import VOPDConfig

    known = options(VOPDConfig)
    settings = parse("train", SUMMARY + _MORE, known, arguments)
    train_options = settings.build(TrainOptions)
    _refuse_without_effect(settings, known)
    folder = _folder(train_options, settings)
    config = settings.build(VOPDConfig, output_dir=str(folder), run_name=folder.name)
    accuracy = plan_accuracy(train_options, config, folder)
    run_directory.create(folder, resume=train_options.resume)
    trainer = build_trainer(train_options, config)
    if run_directory.is_main_process():
        write_resolved(folder / "resolved_config.yaml", settings, config, folder.name)
    # The others would wait for the first process's evaluation, and give up after half an hour: then it comes last.
    if accuracy is not None and trainer.accelerator.num_processes == 1:
        accuracy.measure("start", trainer.train_dataset["prompt"])
    trainer.train(resume_from_checkpoint=_checkpoint(folder) if train_options.resume else None)
    trainer.save_model(str(folder / "model"))
    if not run_directory.is_main_process():
        return 0
    (folder / "model" / "training_args.bin").unlink(missing_ok=True)  # a pickle; no model needs it
    trainer.state.save_to_json(str(folder / "trainer_state.json"))
    print(f"trained {trainer.state.global_step} steps; the model is in {folder / 'model'}")
    if accuracy is None:
        _report(folder)
        print(f"next: vopd eval --model {folder / 'model'} --data problems.jsonl")
        return 0
    prompts = list(trainer.train_dataset["prompt"])
    _free(trainer)
    del trainer
    accuracy.measure("start", prompts)
    accuracy.measure("trained")
    _report(folder)
    print(accuracy.summary())
    return 0


def options(config: type) -> dict[str, Option]:
    """Return the options of `vopd train`: its own first, then those of the trainer's configuration."""
    own = options_of(TrainOptions, group="models, prompts, run")
    of_config = options_of(config, group="method and optimiser", shown=_MAIN_FIELDS)
    return {**own, **{name: option for name, option in of_config.items() if name not in own}}


def build_trainer(train_options: TrainOptions, config: Any) -> Any:
    """Load both models and the prompts and return the trainer.

    The student is made to stop at the teacher's end tokens too: it learns to emit them, and would otherwise run
    on to the length limit after each.
    """
    from vopd.data.prompts import read_prompts
    from vopd.data.rendering import thinking_options
    from vopd.models import end_ids, end_token_difference, load_model, load_tokenizer, set_end_ids
    from vopd.training import VOPDTrainer

    own, teachers = train_options.model_revision, train_options.teacher_model_revision
    tokenizer = load_tokenizer(train_options.model, revision=own)
    teacher_tokenizer = load_tokenizer(train_options.teacher_model, revision=teachers)
    switch = thinking_options(train_options.thinking, train_options.chat_template, tokenizer)
    prompts = read_prompts(
        train_options.dataset,
        split=train_options.dataset_split,
        revision=train_options.dataset_revision,
        count=train_options.max_prompts,
        seed=config.seed,
        options=train_options.dataset_options,
        template=train_options.prompt_template,
        tokenizer=tokenizer,
        chat_template=train_options.chat_template,
        chat_options={**(config.chat_template_kwargs or {}), **switch},
    )
    student = load_model(train_options.model, dtype=train_options.dtype, revision=own)
    teacher = load_model(train_options.teacher_model, dtype=train_options.teacher_dtype, revision=teachers)
    difference = end_token_difference(student, teacher, tokenizer, teacher_tokenizer)
    if difference is not None:
        set_end_ids(student, {*end_ids(student, tokenizer), *end_ids(teacher, teacher_tokenizer)})
        logger.warning("%s (done for this run)", difference)
    return VOPDTrainer(
        model=student,
        teacher_model=teacher,
        args=config,
        train_dataset=prompts.dataset,
        processing_class=tokenizer,
        peft_config=_lora(train_options, student),
    )


def plan_accuracy(train_options: TrainOptions, config: Any, folder: Path) -> Accuracy | None:
    """Return what measures accuracy before and after the run, or None where no problems were named.

    Greedy, on the prompts as they are trained on, by the code and with the settings of the `vopd eval` command that
    it prints.
    """
    if (train_options.eval_task is None and train_options.eval_data is None) or not run_directory.is_main_process():
        return None
    common: dict[str, Any] = {
        "task": train_options.eval_task,
        "data": train_options.eval_data,
        "kind": train_options.eval_kind,
        "count": train_options.eval_count,
        "task_options": train_options.eval_task_options,
        "template": train_options.eval_template or train_options.prompt_template,
        "chat_template": train_options.chat_template,
        "thinking": train_options.thinking,
        "chat_template_kwargs": config.chat_template_kwargs,
        "max_new_tokens": train_options.eval_max_new_tokens or config.max_completion_length,
        "seed": train_options.eval_seed,
        "device": "cpu" if config.use_cpu else "auto",
        "temperature": 0.0,
    }
    start: dict[str, Any] = {"model_revision": train_options.model_revision, "dtype": train_options.dtype}
    return Accuracy(
        EvalOptions(model=train_options.model, **start, **common),
        EvalOptions(model=str(folder / "model"), **common),
        folder,
    )


def write_resolved(path: Path, settings: Settings, config: Any, run_name: str) -> None:
    """Write every setting with its origin; what the configuration chose itself is written as chosen."""
    values: dict[str, Any] = {**settings.values, "run_name": run_name}
    del values["resume"]  # says how the run was called, not what it is
    origins = dict(settings.origins)
    for name, value in values.items():
        chosen = getattr(config, name, None)
        if value is None and origins[name] == "default" and isinstance(chosen, bool | int | float | str):
            values[name], origins[name] = chosen, CHOSEN_HERE
    path.write_text(to_yaml(values, origins), encoding="utf-8")


def _refuse_without_effect(settings: Settings, known: Mapping[str, Option]) -> None:
    for name, instead in _ELSEWHERE.items():
        if name in known and settings.values[name] != known[name].default:
            raise ConfigurationError(f"{name} has no effect in vopd train: {instead}")


def _folder(train_options: TrainOptions, settings: Settings) -> Path:
    name = train_options.run_name
    if name is None:
        name = run_directory.suggest_name(train_options.model, str(settings.values["estimator"]))
    return run_directory.run_directory(train_options.output_dir, name)


def _free(trainer: Any) -> None:
    """Let go of both models and the optimizer: the evaluation loads the saved model anew, and needs the room."""
    import torch

    trainer.accelerator.free_memory()
    trainer.model = trainer.model_wrapped = trainer.teacher_model = trainer.optimizer = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _report(folder: Path) -> None:
    """Write report.html. A trained model is not lost to a page that cannot be written."""
    from vopd.reporting.report import write_report

    try:
        print(f"the report is {write_report(folder)}")
    except (VOPDError, OSError) as error:
        logger.warning("no report: %s", error)


def _checkpoint(folder: Path) -> str | None:
    checkpoint = run_directory.last_checkpoint(folder)
    return None if checkpoint is None else str(checkpoint)


def _lora(train_options: TrainOptions, student: Any) -> Any:
    if train_options.lora_rank == 0:
        return None
    targets = train_options.lora_target_modules
    head = _head_name(student)
    if any(target.split(".")[-1] == head for target in targets):
        raise ConfigurationError(
            f"lora_target_modules names the output head '{head}', which can have no adapter: the loss reads its "
            "weight directly; leave it out"
        )
    rank = train_options.lora_rank
    return require("peft", "train").LoraConfig(
        r=rank,
        lora_alpha=2 * rank if train_options.lora_alpha is None else train_options.lora_alpha,
        lora_dropout=0.0,  # a rollout and its gradient must see one policy
        target_modules=targets[0] if targets == ["all-linear"] else targets,
        task_type="CAUSAL_LM",
    )


def _head_name(model: Any) -> str:
    head = model.get_output_embeddings()
    return next((name.split(".")[-1] for name, module in model.named_modules() if module is head), "lm_head")

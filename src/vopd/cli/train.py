"""`vopd train`: models, prompts and settings in, a run directory with a trained model out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vopd.cli import run_directory
from vopd.cli.options import CHOSEN_HERE, Option, Settings, needed, options_of, parse, setting, to_yaml
from vopd.errors import ConfigurationError, require

logger = logging.getLogger(__name__)

SUMMARY = """\
Train a student to match a teacher on the student's own samples.

Writes OUTPUT_DIR/RUN_NAME with resolved_config.yaml, metrics.jsonl, samples.jsonl, checkpoints and, at the end,
model/ (safetensors). On several GPUs: accelerate launch -m vopd train ...
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
    dataset: str = needed("prompts: .jsonl, .json or .parquet file, hub id, or reasoning_gym:NAME")
    output_dir: str = setting("runs", "folder of all runs")
    run_name: str | None = setting(None, "folder of this run in output_dir; default: from models and estimator")
    resume: bool = setting(False, "continue the run of this name from its last checkpoint")
    dataset_split: str = setting("train", "split of a hub data set")
    dataset_options: dict | None = setting(None, "options of a reasoning_gym task, or of datasets.load_dataset")
    max_prompts: int | None = setting(None, "use only the first N prompts; for reasoning_gym make N")
    prompt_template: str | None = setting(None, "prompt text, with {column} for a column of the data set")
    chat_template: bool = setting(False, "put prompts into the student's chat template")
    model_revision: str | None = setting(None, "branch, tag or commit of the student on the hub")
    teacher_model_revision: str | None = setting(None, "branch, tag or commit of the teacher on the hub")
    dtype: str = setting("float32", "of the student's weights: float32, bfloat16, float16, auto")
    teacher_dtype: str = setting("auto", "of the teacher's weights; auto is as saved")
    lora_rank: int = setting(0, "train LoRA adapters of this rank; 0 trains every weight")
    lora_alpha: int | None = setting(None, "scale of the adapters is lora_alpha / lora_rank; default: twice the rank")
    lora_target_modules: list[str] = setting(["all-linear"], "modules with adapters; never the output head")

    def __post_init__(self) -> None:
        if self.lora_rank < 0:
            raise ConfigurationError(f"lora_rank must be 0 or above, got {self.lora_rank}")
        if self.lora_rank == 0 and self.lora_alpha is not None:
            raise ConfigurationError("lora_alpha needs lora_rank, for example lora_rank=64")


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
    run_directory.create(folder, resume=train_options.resume)
    trainer = build_trainer(train_options, config)
    if run_directory.is_main_process():
        write_resolved(folder / "resolved_config.yaml", settings, config, folder.name)
    trainer.train(resume_from_checkpoint=_checkpoint(folder) if train_options.resume else None)
    trainer.save_model(str(folder / "model"))
    if run_directory.is_main_process():
        (folder / "model" / "training_args.bin").unlink(missing_ok=True)  # a pickle; no model needs it
        trainer.state.save_to_json(str(folder / "trainer_state.json"))
        print(f"trained {trainer.state.global_step} steps; the model is in {folder / 'model'}")
        print(f"next: vopd eval --model {folder / 'model'} --data problems.jsonl")
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
    from vopd.data.prompts import load_prompts
    from vopd.models import end_ids, end_token_difference, load_model, load_tokenizer, set_end_ids
    from vopd.training import VOPDTrainer

    own, teachers = train_options.model_revision, train_options.teacher_model_revision
    tokenizer = load_tokenizer(train_options.model, revision=own)
    teacher_tokenizer = load_tokenizer(train_options.teacher_model, revision=teachers)
    prompts = load_prompts(
        train_options.dataset,
        split=train_options.dataset_split,
        count=train_options.max_prompts,
        seed=config.seed,
        options=train_options.dataset_options,
        template=train_options.prompt_template,
        tokenizer=tokenizer,
        chat_template=train_options.chat_template,
        chat_options=config.chat_template_kwargs,
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
        train_dataset=prompts,
        processing_class=tokenizer,
        peft_config=_lora(train_options, student),
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

"""All that can be known of a run before a weight is loaded: tokenizers, vocabularies, sizes, prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vopd.cli.plan import Plan, TrainOptions
from vopd.errors import ConfigurationError, VOPDError

T = TypeVar("T")


@dataclass(frozen=True)
class ModelFacts:
    """A model without its weights, and its tokenizer."""

    skeleton: Any
    tokenizer: Any


@dataclass(frozen=True)
class Facts:
    """What was found. None marks what is out of reach of this machine, with a line in `notes`.

    Attributes:
        student, teacher: the models.
        vocabulary: number of token ids that they share.
        prompts: to train on, the too long ones dropped.
        notes: what a user should know and may live with.
    """

    student: ModelFacts | None
    teacher: ModelFacts | None
    vocabulary: int | None
    prompts: Any | None
    notes: list[str] = field(default_factory=list)


def look(plan: Plan, *, far: bool = True) -> Facts:
    """Check models and prompts of a plan as far as that needs no weights.

    Args:
        plan: the run.
        far: what only the hub has must be in reach; otherwise it is noted and passed over.

    Raises:
        ConfigurationError, DataError, MismatchError: as training would, but before hours of loading.
    """
    from vopd.training.trackers import check_trackers

    options, notes = plan.options, []
    check_trackers(plan.config.report_to)

    def reach(load: Callable[[], T], source: Any) -> T | None:
        try:
            return load()
        except VOPDError:
            if far or not only_on_hub(source):
                raise
            notes.append(f"not checked, for it is not on this machine: {_named(source)}")
            return None

    student = reach(lambda: _model(options.model, options.model_revision), options.model)
    teacher = reach(lambda: _model(options.teacher_model, options.teacher_model_revision), options.teacher_model)
    vocabulary = _check_pair(plan, student, teacher, notes)
    prompts = None
    if student is not None or not options.chat_template:
        tokenizer = None if student is None else student.tokenizer
        prompts = reach(lambda: _prompts(plan, tokenizer), options.dataset)
    if prompts is not None and student is not None:
        _check_room(plan, prompts, student, teacher)
    return Facts(student, teacher, vocabulary, prompts, notes)


def only_on_hub(source: Any) -> bool:
    """True for a hub id of a model or data set that no file or folder here has the name of."""
    from vopd.data.files import SUFFIXES
    from vopd.data.sources import TASK_PREFIX

    if isinstance(source, list):
        return any(only_on_hub(entry) for entry in source)
    if isinstance(source, dict):
        return only_on_hub(source.get("source"))
    text = str(source)
    is_path = text.startswith((".", "/", "~")) or text.count("/") > 1 or Path(text).suffix in SUFFIXES
    return not (is_path or text.startswith(TASK_PREFIX) or Path(text).exists())


def _named(source: Any) -> str:
    entries = source if isinstance(source, list) else [source]
    return ", ".join(str(entry["source"] if isinstance(entry, dict) else entry) for entry in entries)


def _model(source: str, revision: str | None) -> ModelFacts:
    from vopd.models import load_skeleton, load_tokenizer

    return ModelFacts(load_skeleton(source, revision=revision), load_tokenizer(source, revision=revision))


def _check_pair(plan: Plan, student: ModelFacts | None, teacher: ModelFacts | None, notes: list[str]) -> int | None:
    """Heads, vocabularies, end tokens, k; returns the size of the common vocabulary."""
    from vopd.models import common_vocabulary, end_token_difference, read_head

    found = [(name, model) for name, model in (("student", student), ("teacher", teacher)) if model is not None]
    rows = {name: len(read_head(model.skeleton, name).weight) for name, model in found}
    for name, model in found:
        if model.tokenizer.pad_token_id == model.tokenizer.eos_token_id:
            notes.append(f"the {name}'s padding token is its end token; padding is told from text by lengths")
    if student is None:
        return None
    _check_lora(plan.options, student)
    other = student if teacher is None else teacher
    vocabulary = common_vocabulary(
        student.tokenizer, other.tokenizer, student_rows=rows["student"], teacher_rows=rows.get("teacher")
    )
    if plan.config.loss_top_k is not None and plan.config.loss_top_k > vocabulary:
        raise ConfigurationError(
            f"loss_top_k={plan.config.loss_top_k} is more than the vocabulary has ({vocabulary}); lower it"
        )
    if teacher is not None:
        difference = end_token_difference(student.skeleton, teacher.skeleton, student.tokenizer, teacher.tokenizer)
        notes += [] if difference is None else [f"{difference} (vopd train does)"]
    return vocabulary


def _check_lora(options: TrainOptions, student: ModelFacts) -> None:
    from vopd.cli.lora import lora_config

    adapters = lora_config(options, student.skeleton)
    if adapters is None:
        return
    import peft
    import torch

    try:
        with torch.device("meta"):
            peft.get_peft_model(student.skeleton, adapters)
    except ValueError as error:
        raise ConfigurationError(f"lora_target_modules: {str(error).splitlines()[0]}") from error


def _prompts(plan: Plan, tokenizer: Any) -> Any:
    from vopd.data.prompts import read_prompts
    from vopd.data.rendering import thinking_options
    from vopd.training.prompts import check_enough
    from vopd.training.rewards import Rewards

    options, config = plan.options, plan.config
    switch = thinking_options(options.thinking, options.chat_template, tokenizer)
    prompts = read_prompts(
        options.dataset,
        split=options.dataset_split,
        revision=options.dataset_revision,
        count=options.max_prompts,
        seed=config.seed,
        options=options.dataset_options,
        template=options.prompt_template,
        tokenizer=tokenizer,
        chat_template=options.chat_template,
        chat_options={**(config.chat_template_kwargs or {}), **switch},
        max_prompt_length=None if tokenizer is None else config.max_prompt_length,
    )
    check_enough(len(prompts.dataset), step_prompts(config))
    Rewards.of(config, options.reward_funcs).check_columns(prompts.dataset, "the data")
    return prompts


def _check_room(plan: Plan, prompts: Any, student: ModelFacts, teacher: ModelFacts | None) -> None:
    from vopd.models import context_length
    from vopd.training.prompts import check_room

    positions = context_length(student.skeleton, *([] if teacher is None else [teacher.skeleton]))
    length = plan.config.max_completion_length
    check_room(prompts.dataset, "train_dataset", positions, length, lambda texts: student.tokenizer(texts)["input_ids"])


def step_prompts(config: Any) -> int:
    """Prompts of one optimizer step over all processes."""
    return step_completions(config) // int(config.num_generations)


def step_completions(config: Any) -> int:
    """Completions of one optimizer step over all processes."""
    return int(config.per_device_train_batch_size * config.world_size * config.gradient_accumulation_steps)

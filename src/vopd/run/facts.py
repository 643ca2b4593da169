"""All that can be known of a run before a weight is loaded: tokenizers, vocabularies, sizes, prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from vopd.errors import ConfigurationError, VOPDError

from .plan import Plan, TrainOptions

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
        student: the model.
        teachers: by path, those that are models of their own; one behind a server only where a path names it too.
        vocabulary: number of token ids that they share.
        prompts: to train on, the too long ones dropped, with their ids where the student's tokenizer is there.
        benchmarks: a line for each benchmark that accuracy is measured on during the run.
        notes: what a user should know and may live with.
    """

    student: ModelFacts | None
    teachers: dict[str, ModelFacts]
    vocabulary: int | None
    prompts: Any | None
    benchmarks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def look(plan: Plan, *, far: bool = True) -> Facts:
    """Check models and prompts of a plan as far as that needs no weights.

    Args:
        plan: the run.
        far: what only the hub has must be in reach; otherwise it is noted and passed over.

    Raises:
        ConfigurationError, DataError, MismatchError: as training would, but before hours of loading.
    """
    from vopd.training.monitoring.accuracy import check_names, load_one, plan_lines
    from vopd.training.monitoring.trackers import check_trackers

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
    teachers = {}
    for path, revision in teacher_paths(plan).items():
        found = reach(partial(_model, path, revision), path)
        if found is not None:
            teachers[path] = found
    vocabulary = _check_models(plan, student, teachers, notes)
    prompts = None
    if student is not None or not options.chat_template:
        tokenizer = None if student is None else student.tokenizer
        prompts = reach(lambda: _prompts(plan, tokenizer), options.dataset)
    if prompts is not None and student is not None:
        _check_room(plan, prompts, student, teachers)
    asked = plan.config.eval_benchmarks or []
    in_reach = [reach(partial(load_one, name, plan.config), name) for name in asked]
    benchmarks = [benchmark for benchmark in in_reach if benchmark is not None]
    check_names(benchmarks)
    return Facts(student, teachers, vocabulary, prompts, plan_lines(plan.config, benchmarks), notes)


def teacher_paths(plan: Plan) -> dict[str, str | None]:
    """The folder or hub id of every teacher that has one, each once, with its revision."""
    from vopd.teachers.build import Served

    named = [(name, source.path if isinstance(source, Served) else source) for name, source in plan.teachers.items()]
    return _revisions(plan, [(name, path) for name, path in named if path is not None])


def loaded_teachers(plan: Plan) -> dict[str, str | None]:
    """The same of the teachers in this process: a server's path only tells its tokenizer."""
    from vopd.teachers.build import Served

    return _revisions(plan, [(name, path) for name, path in plan.teachers.items() if not isinstance(path, Served)])


def _revisions(plan: Plan, named: list[tuple[str, Any]]) -> dict[str, str | None]:
    from vopd.teachers.columns import DEFAULT
    from vopd.teachers.itself import is_self

    revisions = {DEFAULT: plan.options.teacher_model_revision}
    return {str(path): revisions.get(name) for name, path in named if not is_self(path)}


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


def _check_models(
    plan: Plan, student: ModelFacts | None, teachers: dict[str, ModelFacts], notes: list[str]
) -> int | None:
    """Heads, vocabularies, end tokens, k; returns the size of the common vocabulary."""
    from vopd.models import common_vocabulary, end_token_difference, read_head

    found = [("student", student)] if student is not None else []
    for name, model in [*found, *(("teacher", teacher) for teacher in teachers.values())]:
        read_head(model.skeleton, name)
        if model.tokenizer.pad_token_id == model.tokenizer.eos_token_id:
            notes.append(f"the {name}'s padding token is its end token; padding is told from text by lengths")
    if student is None:
        return None
    _check_lora(plan.options, student)
    vocabulary = len(student.tokenizer)
    for other in [student, *teachers.values()]:
        vocabulary = common_vocabulary(
            student.tokenizer, other.tokenizer, student_rows=_head_rows(student), teacher_rows=_head_rows(other)
        )
    if plan.config.loss_top_k is not None and plan.config.loss_top_k > vocabulary:
        raise ConfigurationError(
            f"loss_top_k={plan.config.loss_top_k} is more than the vocabulary has ({vocabulary}); lower it"
        )
    for teacher in teachers.values():
        difference = end_token_difference(student.skeleton, teacher.skeleton, student.tokenizer, teacher.tokenizer)
        notes += [] if difference is None else [f"{difference} (vopd train does)"]
    return vocabulary


def _head_rows(model: ModelFacts) -> int:
    return len(model.skeleton.get_output_embeddings().weight)


def _check_lora(options: TrainOptions, student: ModelFacts) -> None:
    from .lora import lora_config

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
    """The prompts, read and checked; with their ids where there is a tokenizer."""
    from vopd.data.chat import thinking_options
    from vopd.data.prompt_checks import check_enough
    from vopd.data.prompts import read_prompts
    from vopd.data.tokenized import add_ids, text_tokenizer, without_ids
    from vopd.teachers.columns import Routes, TeacherPrompts
    from vopd.training.rewards.functions import Rewards

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
        teacher_template=options.teacher_prompt_template,
        teacher_column=config.teacher_prompt_column,
    )
    tokenize = None if tokenizer is None else text_tokenizer(tokenizer)
    if tokenize is not None:
        prompts = prompts.tokenized(tokenize, config.max_prompt_length)
    check_enough(len(prompts.dataset), step_prompts(config))
    plain = without_ids(prompts.dataset)
    Rewards.of(config, options.reward_funcs).check(plain, "the data")
    Routes(list(plan.teachers), config.teacher_column).check(plain, "the data")
    TeacherPrompts(config.teacher_prompt_column).check(plain, "the data")
    if tokenize is not None:
        prompts = replace(prompts, dataset=add_ids(prompts.dataset, tokenize, config.teacher_prompt_column))
    return prompts


def _check_room(plan: Plan, prompts: Any, student: ModelFacts, teachers: dict[str, ModelFacts]) -> None:
    from vopd.data.prompt_checks import check_room
    from vopd.models import context_length

    positions = context_length(student.skeleton, *(teacher.skeleton for teacher in teachers.values()))
    column = plan.config.teacher_prompt_column
    check_room(prompts.dataset, "train_dataset", positions, plan.config.max_completion_length, column)


def step_prompts(config: Any) -> int:
    """Prompts of one optimizer step over all processes."""
    return step_completions(config) // int(config.num_generations)


def step_completions(config: Any) -> int:
    """Completions of one optimizer step over all processes."""
    return int(config.per_device_train_batch_size * config.world_size * config.gradient_accumulation_steps)

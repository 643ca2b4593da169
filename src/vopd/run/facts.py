"""What can be known about a run before any weights are loaded: tokenizers, vocabularies, sizes, prompts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator

from vopd.data.chat import Chat
from vopd.data.prompt_checks import check_enough, check_room, keep_short
from vopd.data.prompts import Prompts, read_prompts
from vopd.data.sources import Source
from vopd.data.tokenized import TEACHER_PROMPT_IDS, without_ids
from vopd.errors import Faults, VOPDError, installed, require
from vopd.estimators.checks import check_top_k
from vopd.kernels import backend_name
from vopd.models import (
    context_length,
    end_token_difference,
    load_skeleton,
    load_tokenizer,
    read_head,
    rollout_settings,
)
from vopd.models.adapters import check_mergeable, check_sendable
from vopd.models.files.adapter_folders import find_adapter
from vopd.models.head_files import check_head
from vopd.models.loading import check_weights
from vopd.placement import Placement, described
from vopd.teachers.build import DEFAULT, Served
from vopd.teachers.columns import Routes, TeacherPrompts, check_readers
from vopd.teachers.itself import is_self
from vopd.teachers.server.settings import HIDDEN_STATES, SCORES, sends_states
from vopd.training import VOPDConfig
from vopd.training.monitoring.benchmark_runs import check_names, load_one, plan_lines
from vopd.training.monitoring.first_lines import Gives, Start
from vopd.training.rewards.functions import Rewards
from vopd.training.rollout_logprobs import check_engine

from . import directory
from .exit_codes import told_by_the_first
from .lora import add_adapter
from .plan import Plan

T = TypeVar("T")
Place = tuple[str, str | None]
"""The folder or hub id of a model, and the revision of a hub id."""


@dataclass(frozen=True)
class ModelFacts:
    """A model without its weights, and its tokenizer."""

    skeleton: Any
    tokenizer: Any

    @property
    def head_rows(self) -> int:
        return len(self.skeleton.get_output_embeddings().weight)

    @property
    def commit(self) -> str | None:
        """The commit on the hub; None for a folder."""
        return getattr(self.skeleton.config, "_commit_hash", None)


@dataclass(frozen=True)
class Facts:
    """What was found. None marks what this machine does not have, with a line in `notes`.

    Attributes:
        student: the model.
        teachers: by place, the teachers with a model; one behind a server only if it has a path too.
        vocabulary: number of token ids that they share.
        prompts: the training prompts without those that are too long; with token ids if the student's tokenizer is
            available.
        benchmarks: one line per benchmark whose accuracy is measured during the run.
        notes: what a user should know but training accepts.
    """

    student: ModelFacts | None
    teachers: dict[Place, ModelFacts]
    vocabulary: int | None
    prompts: Prompts | None
    benchmarks: list[str]
    notes: list[str]

    @property
    def dropped(self) -> int:
        """Prompts that were too long."""
        assert self.prompts is not None
        return sum(entry["prompts"] for entry in self.prompts.sources) - len(self.prompts.dataset)


@told_by_the_first()
def gather_facts(plan: Plan, *, far: bool = True) -> Facts:
    """Check the models and prompts of a plan, as far as possible without weights.

    Args:
        plan: the run.
        far: models and datasets that only the hub has must be reachable; otherwise they are noted and skipped.

    Raises:
        ConfigurationError, DataError, MismatchError: as training would, but before weights are loaded.
    """
    options, config = plan.options, plan.config
    faults = Faults()
    notes = _check_machine(plan, far, faults)

    def reach(source: Any, load: Callable[..., T], *given: Any) -> T | None:
        try:
            return load(*given)
        except VOPDError as error:
            if far or not only_on_hub(source):
                faults.add(error)
            else:
                away = ", ".join([*_names(source), *_bases(source)])
                notes.append(f"not checked, because it is not on this machine: {away}")
            return None

    student = reach(options.model, partial(_model, trainable=True), options.model, options.model_revision)
    here = set(teacher_places(plan, served=False).values())
    found = {
        place: reach(place[0], partial(_model, loaded=place in here), *place) for place in teacher_places(plan).values()
    }
    teachers = {place: teacher for place, teacher in found.items() if teacher is not None}
    _check_heads(plan, teachers, notes, faults)
    sizes = _check_models(plan, student, teachers, notes, faults)
    prompts = reach(options.dataset, _prompts, plan, None if student is None else student.tokenizer, faults)
    if prompts is not None and student is None and (config.chat_template or prompts.conversations):
        notes.append("prompts not checked with the chat template of the student, which is not on this machine")
    if prompts is not None and student is not None:
        positions = context_length(student.skeleton, *(teacher.skeleton for teacher in teachers.values()))
        limit, name = config.max_completion_length, f"'{prompts.name}'"
        of_teacher = config.teacher_prompt_column if TEACHER_PROMPT_IDS in prompts.dataset.column_names else None
        faults.check(check_room, prompts.dataset, name, positions, limit, of_teacher)
        if sizes:
            shared = {teacher: sizes[place] for teacher, place in teacher_places(plan).items() if place in sizes}
            routes = Routes(list(plan.teachers), config.teacher_column)
            faults.check(check_readers, prompts.dataset, name, student.tokenizer, student.head_rows, shared, routes)
    in_reach = [reach(name, load_one, name, config) for name in config.eval_benchmarks or []]
    benchmarks = [benchmark for benchmark in in_reach if benchmark is not None]
    faults.check(check_names, benchmarks)
    faults.tell()
    return Facts(student, teachers, min(sizes.values(), default=None), prompts, plan_lines(config, benchmarks), notes)


def _check_machine(plan: Plan, far: bool, faults: Faults) -> list[str]:
    """Check the run's folder, packages and device; returns notes: what a dry run can do without, and perhaps another
    machine has."""
    options, config = plan.options, plan.config
    quantized = options.quantization or options.teacher_quantization
    needed = {"vllm": config.use_vllm, "bitsandbytes": quantized, "triton": config.loss_backend == "triton"}
    missing = [name for name, used in needed.items() if used and not installed(name)]
    if far and quantized:
        faults.check(require, "bitsandbytes", "quantization")
    starts, later = far and not options.dry_run, Faults()
    if plan.folder != Path(options.output_dir):  # it is if the run's name is wrong
        (faults if starts else later).check(directory.check_free, plan.folder, resume=options.resume)
    if starts:
        faults.check(check_engine, config.use_vllm, config.importance_sampling, None)
    if far or "triton" not in missing:
        (faults if far or config.use_cpu else later).check(backend_name, config.loss_backend, config.device)
    return [*map(str, later.found), *(f"{package} is not installed here; training needs it" for package in missing)]


def planned_start(plan: Plan, facts: Facts) -> Start:
    """What training will print before its first step (`vopd.training.monitoring.first_lines`), without weights."""
    config, options = plan.config, plan.options
    assert facts.student is not None and facts.prompts is not None  # `gather_facts` insisted on them
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    placement = Placement(accelerator, within=lambda *given: None, library=None)  # which holds no model
    spread = 1 if placement.divided else accelerator.num_processes

    def size(model: ModelFacts, dtype: str, quantization: str | None) -> str:
        return described(_as_loaded(model.skeleton, dtype, quantization), torch.device("meta"), spread)

    sizes, gives, places = {}, {}, teacher_places(plan)
    for name, source in plan.teachers.items():
        model = facts.teachers.get(places.get(name, ("", None)))
        if isinstance(source, Served):
            gives[name] = _planned_gives(config, model)
        elif model is not None:
            model.skeleton.requires_grad_(False)
            sizes[name] = size(model, options.teacher_dtype, options.teacher_quantization)
    return Start(
        placement=placement,
        student=options.model,
        student_size=size(facts.student, options.dtype, options.quantization),
        teachers=plan.teachers,
        teacher_sizes=sizes,
        teachers_give=gives,
        backend=backend_name(config.loss_backend, config.device),
        rewards=Rewards.of(config, options.reward_funcs).summary,
        prompts=len(facts.prompts.dataset),
        dropped=facts.dropped,
        steps=config.steps_of(len(facts.prompts.dataset)),
    )


def _planned_gives(config: VOPDConfig, model: ModelFacts | None) -> Gives:
    """What a server will give, as far as it is known without asking; `model`: of the files that are named, if any."""
    payload = HIDDEN_STATES if sends_states(config) else config.teacher_server_payload
    if model is None or payload == SCORES:
        return Gives()
    saved = _as_loaded(model.skeleton, "auto", None)
    return Gives(payload, read_head(saved, "teacher").detach())


def _as_loaded(skeleton: Any, dtype: str, quantization: str | None) -> Any:
    """A copy of the skeleton with the dtypes of the weights that `load_model` would load; adapters keep theirs."""
    model = copy.deepcopy(skeleton)
    chosen = model.config.dtype if dtype == "auto" else getattr(torch, dtype)
    adapted = len({weight.requires_grad for weight in model.parameters()}) == 2
    for weight in model.parameters():
        if isinstance(chosen, torch.dtype) and not (adapted and weight.requires_grad):
            weight.data = weight.data.to(chosen)
    if quantization is not None:
        head = model.get_output_embeddings()
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module is not head and not module.weight.requires_grad:
                module.weight = torch.nn.Parameter(module.weight.to(torch.uint8), requires_grad=False)
    return model


def teacher_places(plan: Plan, *, served: bool = True) -> dict[str, Place]:
    """The folder or hub id of every teacher that has one, with its revision, by the teacher's name.

    The path of a teacher behind a server is that of its tokenizer and of its output head: it is left out unless
    `served`.
    """
    found: dict[str, Place] = {}
    for name, source in plan.teachers.items():
        if isinstance(source, Served):
            source = source.path if served else None
        if source is not None and not is_self(source):
            found[name] = str(source), plan.options.teacher_model_revision if name == DEFAULT else None
    return found


def only_on_hub(source: Any) -> bool:
    """True for the hub id of a model or dataset, unless a file or folder of that name exists here; of an adapter here,
    for that of its base model."""
    return any(Source(text).on_hub for text in [*_names(source), *_bases(source)] if text)


def _bases(source: Any) -> list[str]:
    """The base model of an adapter's folder, which is one more thing that has to be on this machine."""
    adapter = find_adapter(source) if isinstance(source, str) and Path(source).is_dir() else None
    return [] if adapter is None else [adapter.base]


def _names(source: Any) -> list[str]:
    """The path or id of a model or of prompts; all of them for a mixture of prompts."""
    entries = source if isinstance(source, list) else [source]
    return [str(entry.get("source") if isinstance(entry, dict) else entry) for entry in entries]


def _model(source: str, revision: str | None, *, trainable: bool = False, loaded: bool = True) -> ModelFacts:
    if loaded:
        check_weights(source, revision)
    skeleton = load_skeleton(source, revision=revision, trainable=trainable)
    return ModelFacts(skeleton, load_tokenizer(source, revision=revision))


def _check_models(
    plan: Plan, student: ModelFacts | None, teachers: dict[Place, ModelFacts], notes: list[str], faults: Faults
) -> dict[Place, int]:
    """Adapters, heads, vocabularies, end tokens, k; returns how many ids each model shares with the student."""
    for name, model in [("student", student), *(("teacher", teacher) for teacher in teachers.values())]:
        if model is not None and model.tokenizer.pad_token_id == model.tokenizer.eos_token_id:
            notes.append(f"the {name} has one token for EOS and padding; vopd tells them apart by sequence lengths")
    sound = {
        place: teacher
        for place, teacher in teachers.items()
        if faults.check(read_head, teacher.skeleton, "teacher") is not None
    }
    if student is None:
        return {}
    with faults:
        add_adapter(plan.options, student.skeleton)  # first: reading the head then finds adapters on it
        read_head(student.skeleton, "student")
        if plan.config.use_vllm:
            check_sendable(student.skeleton)
            check_mergeable(student.skeleton)
        own = (plan.options.model, plan.options.model_revision)
        shared = {
            place: rollout_settings(student.skeleton, student.tokenizer, other.skeleton, other.tokenizer)
            for place, other in {own: student, **sound}.items()
        }
        sizes = {place: common.vocab_size for place, common in shared.items()}
        check_top_k("loss_top_k", plan.config.loss_top_k, min(sizes.values()))
        notes += dict.fromkeys(common.cut for common in shared.values() if common.cut is not None)
        for teacher in sound.values():
            difference = end_token_difference(student.skeleton, teacher.skeleton, student.tokenizer, teacher.tokenizer)
            notes += [] if difference is None else [f"{difference} (vopd train does this)"]
        return sizes
    return {}


def _check_heads(plan: Plan, teachers: Container[Place], notes: list[str], faults: Faults) -> None:
    """Look in the files of teachers behind servers for the output heads that hidden states need.

    What is wrong with one is only a note where the server may turn out to give scores.
    """
    config, places = plan.config, teacher_places(plan)
    wrong = Faults()
    for place in {places[name] for name, source in plan.teachers.items() if isinstance(source, Served) and source.path}:
        if place in teachers and config.teacher_server_payload != SCORES:
            wrong.check(check_head, *place)
    for fault in wrong.found:
        if sends_states(config):
            faults.add(fault)
        else:
            notes.append(f"if the server gives hidden states, training will end: {fault}")


def _prompts(plan: Plan, tokenizer: Any, faults: Faults) -> Prompts:
    """The prompts, read and checked; with their token ids if there is a tokenizer."""
    options, config = plan.options, plan.config
    prompts = read_prompts(
        options.dataset,
        split=options.dataset_split,
        revision=options.dataset_revision,
        count=options.max_prompts,
        seed=config.seed,
        options=options.dataset_options,
        template=options.prompt_template,
        chat=None if tokenizer is None else Chat.of(config, tokenizer),
        teacher_template=options.teacher_prompt_template,
        teacher_column=config.teacher_prompt_column,
    )
    dataset = prompts.dataset
    if tokenizer is not None:
        dataset = keep_short(dataset, config.max_prompt_length, f"'{prompts.name}'")
    faults.check(check_enough, len(dataset), config.step_prompts)
    plain = without_ids(dataset)
    if rewards := faults.check(Rewards.of, config, options.reward_funcs):
        faults.check(rewards.check, plain, "the data")
    if plan.teachers:
        faults.check(Routes(list(plan.teachers), config.teacher_column).check, plain, "the data")
    faults.check(TeacherPrompts.of(config).check, plain, "the data")
    return replace(prompts, dataset=dataset)

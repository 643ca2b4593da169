"""Everything that `vopd train` does with a plan: trainer, training, accuracy, model, report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, release_memory

from vopd.data.chat import Chat, chat_settings
from vopd.data.prompts import Prompts
from vopd.data.sources import TASK_PREFIX
from vopd.errors import ConfigurationError, Faults, VOPDError, counted
from vopd.models import end_ids, end_token_difference, load_model, set_end_ids
from vopd.placement import part
from vopd.reporting.report import write_report
from vopd.teachers.build import DEFAULT
from vopd.training import VOPDTrainer
from vopd.training.rewards.functions import Rewards
from vopd.training.saving import checkpoints
from vopd.training.saving.card import card_facts, write_card
from vopd.training.saving.contents import contents_of_model, contents_of_rows
from vopd.training.saving.contract import NEW_RUN, settings_of

from . import directory, publish
from .accuracy import Accuracy
from .evaluation import EvalOptions, Loaded
from .facts import Facts, ModelFacts, Place, gather_facts, teacher_places
from .lora import lora_config
from .next_steps import next_steps
from .plan import Plan, TrainOptions, read_plan, write_resolved

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checked:
    """A run that was asked for, what is known about it without weights, what measures its accuracy, if wanted, and the
    settings that its checkpoints record (empty without the student or the prompts)."""

    plan: Plan
    facts: Facts
    accuracy: Accuracy | None
    settings: dict[str, Any]


def check_run(command: str, summary: str, arguments: Sequence[str], *, far: bool = True) -> Checked:
    """Read the options of a run and check everything that is known without weights; `far` as in `gather_facts`.

    Raises:
        VOPDError: of the first fault, with a line of the message for each.
    """
    faults = Faults()
    plan = read_plan(command, summary, arguments, faults)
    facts = accuracy = settings = None
    if plan is not None:
        facts = faults.check(gather_facts, plan, far=far)
        # A plan with faults lacks settings, which would then differ from the checkpoint's.
        if not faults.found and facts is not None and facts.student is not None and facts.prompts is not None:
            settings = faults.check(check_resume, plan, facts)
        accuracy = faults.check(plan_accuracy, plan, _conversations(facts))
        for fault in broadcast_object_list([[*faults.found]])[0]:  # the first process alone looks at the run's folder
            faults.add(fault)
    faults.tell()
    assert plan is not None and facts is not None
    return Checked(plan, facts, accuracy, settings or {})


def _conversations(facts: Facts | None) -> bool:
    return facts is not None and facts.prompts is not None and facts.prompts.conversations


def train(run: Checked) -> None:
    """Train as planned and leave a complete run directory, or none if training fails before its first step.

    Raises:
        VOPDError: see its subclasses.
    """
    plan = run.plan
    with directory.created(plan.folder, "resolved_config.yaml", "evaluation", "results.json"):
        if directory.is_main_process() and not plan.options.resume:
            write_resolved(plan)  # first: from now on the folder is in use
        card, prompts = _train(run)
        release_memory()  # of the trainer, whose parts refer to each other
        part()
        if directory.is_main_process():
            _finish(run, card, prompts)


def _train(run: Checked) -> tuple[dict[str, Any], Sequence[Any]]:
    """Train and save the model; returns the facts of its model card, and the prompts.

    The trainer with its models and the optimizer is freed when this returns: an evaluation after it loads the saved
    model and needs the memory.
    """
    plan, accuracy = run.plan, run.accuracy
    trainer = build_trainer(plan, run.facts)
    trainer.checkpoints.settings, trainer.stopping.command = run.settings, plan.resumption
    start = trainer.checkpoints.choose(plan.options.resume)
    prompts = trainer.train_dataset["prompt"]
    if directory.is_main_process():
        write_resolved(plan, trainer.checkpoints.changes)
    # Of several processes the others would wait for this and time out after half an hour: then it is measured last.
    if accuracy is not None and trainer.accelerator.num_processes == 1:
        accuracy.measure("start", prompts, _start_model(plan, run.facts, trainer))
    trainer.train(resume_from_checkpoint=start)
    model = plan.folder / "model"
    trainer.save_model(str(model))
    if directory.is_main_process():
        trainer.state.save_to_json(str(plan.folder / "trainer_state.json"))
        kind = "LoRA adapter" if hasattr(trainer.model, "peft_config") else "model"
        steps = counted(trainer.state.global_step, "step")
        finished = start is not None and checkpoints.step_of(Path(start)) == trainer.state.global_step
        done = f"already finished, {steps} (for more, raise max_steps)" if finished else f"trained {steps}"
        print(f"{done}; {kind}: {model}")
    trainer.placement.release()
    return card_facts(trainer, plan.folder.name), prompts


def _start_model(plan: Plan, facts: Facts, trainer: VOPDTrainer) -> Loaded | None:
    """The student in the trainer, to measure it without loading it a second time.

    It ends where the start model ends, not where its teachers do. None if it is not what `vopd eval` would load:
    quantized, or not placed yet.
    """
    assert facts.student is not None
    if plan.options.quantization or trainer.placement.managed:
        return None
    return Loaded(trainer.model, trainer.tokenizer, facts.student.skeleton.generation_config)


def check_resume(plan: Plan, facts: Facts) -> dict[str, Any]:
    """The settings that the run's checkpoints record, checked against the newest one if the run is to be resumed.

    Raises:
        ConfigurationError: the run cannot resume.
    """
    options, config, prompts, places = plan.options, plan.config, facts.prompts, teacher_places(plan)
    assert facts.student is not None and prompts is not None
    dated = Chat.of(config, facts.student.tokenizer).dated
    settings = settings_of(
        config,
        model=contents_of_model(options.model, facts.student.commit),
        teachers={
            name: contents_of_model(source, _commit(facts.teachers, places.get(name)))
            for name, source in plan.teachers.items()
        },
        dataset=contents_of_rows(prompts.dataset, prompts.name, _recipe(options, prompts), dated=dated),
        rewards=Rewards.of(config, options.reward_funcs).rewards,
        adapter=lora_config(options),
        options=asdict(options),
    )
    if options.resume:
        newest = checkpoints.check_resume(plan.folder, settings, config.steps_of(len(prompts.dataset)))
        if newest is None and (plan.folder / "trainer_state.json").is_file():
            raise ConfigurationError(f"the run in '{plan.folder}' is finished, and has no checkpoint; {NEW_RUN}")
    return settings


def _commit(models: dict[Place, ModelFacts], place: Place | None) -> str | None:
    found = None if place is None else models.get(place)
    return None if found is None else found.commit


def _recipe(options: TrainOptions, prompts: Prompts) -> Any:
    """How the prompts are made, if a task generates some: a few tasks depend on the order of sets, which differs from
    process to process."""
    generated = any(str(entry["source"]).startswith(TASK_PREFIX) for entry in prompts.sources)
    return [prompts.sources, options.dataset, options.dataset_options] if generated else None


def build_trainer(plan: Plan, facts: Facts) -> VOPDTrainer:
    """Load the models and return the trainer; a teacher behind a server is not loaded.

    The student also stops at the teachers' EOS tokens: it learns to emit them, and would otherwise generate up to the
    length limit after each.
    """
    options = plan.options
    assert facts.student is not None and facts.prompts is not None

    def load(path: str, revision: str | None, dtype: str, quantization: str | None, trainable: bool = False) -> Any:
        device = str(plan.config.device) if quantization else "cpu"  # quantized weights are loaded onto it
        return load_model(
            path, dtype=dtype, revision=revision, quantization=quantization, device=device, trainable=trainable
        )

    student = load(options.model, options.model_revision, options.dtype, options.quantization, trainable=True)
    tokenizer = facts.student.tokenizer
    for teacher in facts.teachers.values():
        difference = end_token_difference(student, teacher.skeleton, tokenizer, teacher.tokenizer)
        if difference is not None:
            set_end_ids(student, {*end_ids(student, tokenizer), *end_ids(teacher.skeleton, teacher.tokenizer)})
            if directory.is_main_process():
                logger.warning("%s (done for this run)", difference)
    places = teacher_places(plan, served=False)
    loaded = {place: load(*place, options.teacher_dtype, options.teacher_quantization) for place in {*places.values()}}
    named = {name: loaded[places[name]] if name in places else source for name, source in plan.teachers.items()}
    served = plan.config.teacher_server_url is not None
    if served:
        del named[DEFAULT]  # the trainer adds it
    trainer = VOPDTrainer(
        model=student,
        teacher_model=options.teacher_model if served else None,
        teachers=named,
        args=plan.config,
        train_dataset=facts.prompts.dataset,
        processing_class=tokenizer,
        peft_config=lora_config(options),
        reward_funcs=options.reward_funcs,
    )
    trainer.prompts_dropped += facts.dropped
    trainer.card_notes = publish.data_notes(facts.prompts.sources)
    return trainer


def plan_accuracy(plan: Plan, conversations: bool = False) -> Accuracy | None:
    """Return what measures accuracy before and after the run, or None if no problems are named.

    Greedy decoding, with prompts formatted as in training, by the code and the settings of the `vopd eval` command
    that it prints. `conversations`: the prompts are conversations, which get the chat template.
    """
    options, config = plan.options, plan.config
    if (options.eval_task is None and options.eval_data is None) or not directory.is_main_process():
        return None
    asked = ("task", "data", "kind", "count", "task_options", "seed")
    problems = {name: getattr(options, f"eval_{name}") for name in asked}
    of = partial(
        EvalOptions,
        **problems,
        template=options.eval_template or options.prompt_template or "{problem}",
        **chat_settings(config, config.chat_template or conversations),
        max_new_tokens=options.eval_max_new_tokens or config.max_completion_length,
        device="cpu" if config.use_cpu else "auto",
        temperature=0.0,
    )
    start = of(model=options.model, model_revision=options.model_revision, dtype=options.dtype)
    return Accuracy(start, of(model=str(plan.folder / "model")), plan.folder)


def _finish(run: Checked, card: dict[str, Any], prompts: Sequence[Any]) -> None:
    plan, accuracy = run.plan, run.accuracy
    model = plan.folder / "model"
    if accuracy is not None:
        accuracy.measure("start", prompts)
        accuracy.measure("trained")
        write_card(model, {**card, "results": accuracy.table()})
        print(accuracy.summary())
    _report(plan.folder)
    if plan.options.push_to_hub:
        print(f"uploaded to {publish.push(model, plan.config)}")
    lines = next_steps(plan, measured=accuracy is not None, conversations=_conversations(run.facts))
    print("\n".join(["next:", *(f"  {line}" for line in lines)]))


def _report(folder: Path) -> None:
    """Write report.html. A trained model is not lost to a page that cannot be written."""
    try:
        print(f"report: {write_report(folder)}")
    except (VOPDError, OSError) as error:
        logger.warning("no report: %s", error)

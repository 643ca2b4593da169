"""Everything that `vopd train` does with a plan: trainer, training, accuracy, model, report."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import release_memory

from vopd.errors import VOPDError, counted
from vopd.models import end_ids, end_token_difference, load_model, set_end_ids
from vopd.placement import part
from vopd.reporting.report import write_report
from vopd.teachers.build import DEFAULT, Served
from vopd.training import VOPDTrainer
from vopd.training.saving.card import write_card

from . import directory, publish
from .accuracy import Accuracy
from .evaluation import EvalOptions
from .facts import Facts, gather_facts, teacher_paths
from .lora import lora_config
from .plan import Plan, write_resolved

logger = logging.getLogger(__name__)


def train(plan: Plan) -> None:
    """Train as `plan` says and leave a complete run directory.

    Raises:
        VOPDError: see its subclasses.
    """
    accuracy = plan_accuracy(plan)
    directory.create(plan.folder, resume=plan.options.resume)
    card, prompts = _train(plan, accuracy)
    release_memory()  # of the trainer, whose parts refer to each other
    part()
    if directory.is_main_process():
        _finish(plan, accuracy, card, prompts)


def _train(plan: Plan, accuracy: Accuracy | None) -> tuple[dict[str, Any], Sequence[Any]]:
    """Train and save the model; returns the facts of its model card, and the prompts.

    The trainer with its models and the optimizer is freed when this returns: an evaluation after it loads the saved
    model and needs the memory.
    """
    trainer = build_trainer(plan, gather_facts(plan))
    prompts = trainer.train_dataset["prompt"]
    if directory.is_main_process():
        write_resolved(plan)
    # Of several processes the others would wait for this and time out after half an hour: then it is measured last.
    if accuracy is not None and trainer.accelerator.num_processes == 1:
        accuracy.measure("start", prompts)
    trainer.train(resume_from_checkpoint=plan.options.resume)
    model = plan.folder / "model"
    trainer.save_model(str(model))
    if directory.is_main_process():
        trainer.state.save_to_json(str(plan.folder / "trainer_state.json"))
        kind = "LoRA adapter" if plan.options.lora_rank else "model"
        print(f"trained {counted(trainer.state.global_step, 'step')}; {kind}: {model}")
    trainer.placement.release()
    return trainer.card_facts(plan.folder.name), prompts


def build_trainer(plan: Plan, facts: Facts) -> VOPDTrainer:
    """Load the models and return the trainer; a teacher behind a server is not loaded.

    The student also stops at the teachers' EOS tokens: it learns to emit them, and would otherwise generate up to the
    length limit after each.
    """
    options = plan.options
    assert facts.student is not None and facts.prompts is not None

    def load(path: str, revision: str | None, dtype: str, quantization: str | None) -> Any:
        device = str(plan.config.device) if quantization else "cpu"  # quantized weights are loaded onto it
        return load_model(path, dtype=dtype, revision=revision, quantization=quantization, device=device)

    student = load(options.model, options.model_revision, options.dtype, options.quantization)
    tokenizer = facts.student.tokenizer
    for teacher in facts.teachers.values():
        difference = end_token_difference(student, teacher.skeleton, tokenizer, teacher.tokenizer)
        if difference is not None:
            set_end_ids(student, {*end_ids(student, tokenizer), *end_ids(teacher.skeleton, teacher.tokenizer)})
            if directory.is_main_process():
                logger.warning("%s (done for this run)", difference)
    loaded = {
        path: load(path, revision, options.teacher_dtype, options.teacher_quantization)
        for path, revision in teacher_paths(plan, served=False).items()
    }
    named = {
        name: source.urls if isinstance(source, Served) else loaded.get(source, source)
        for name, source in plan.teachers.items()
    }
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


def plan_accuracy(plan: Plan) -> Accuracy | None:
    """Return what measures accuracy before and after the run, or None if no problems are named.

    Greedy decoding, with prompts formatted as in training, by the code and the settings of the `vopd eval` command
    that it prints.
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
        chat_template=options.chat_template,
        thinking=options.thinking,
        chat_template_kwargs=config.chat_template_kwargs,
        max_new_tokens=options.eval_max_new_tokens or config.max_completion_length,
        device="cpu" if config.use_cpu else "auto",
        temperature=0.0,
    )
    start = of(model=options.model, model_revision=options.model_revision, dtype=options.dtype)
    return Accuracy(start, of(model=str(plan.folder / "model")), plan.folder)


def _finish(plan: Plan, accuracy: Accuracy | None, card: dict[str, Any], prompts: Sequence[Any]) -> None:
    model = plan.folder / "model"
    if accuracy is not None:
        accuracy.measure("start", prompts)
        accuracy.measure("trained")
        write_card(model, {**card, "results": accuracy.table()})
        print(accuracy.summary())
    _report(plan.folder)
    if plan.options.push_to_hub:
        print(f"uploaded to {publish.push(model, plan.config)}")
    print("\n".join(["next:", *(f"  {command}" for command in _next(plan))]))


def _next(plan: Plan) -> list[str]:
    """The commands that a user may want next."""
    folder, model = (shlex.quote(str(path)) for path in (plan.folder, plan.folder / "model"))
    limit = plan.config.max_completion_length
    evaluation = f"vopd eval --model {model} --data problems.jsonl --max_new_tokens {limit}"
    commands = [evaluation, f"vopd report {folder}"]
    if plan.options.lora_rank:
        commands.append(f"vopd merge --model {model} --output {shlex.quote(str(plan.folder / 'merged'))}")
    return commands


def _report(folder: Path) -> None:
    """Write report.html. A trained model is not lost to a page that cannot be written."""
    try:
        print(f"report: {write_report(folder)}")
    except (VOPDError, OSError) as error:
        logger.warning("no report: %s", error)

"""Train a student to match a teacher on the student's own samples (on-policy distillation).

Everything a run writes is in OUTPUT_DIR/RUN_NAME: resolved_config.yaml, metrics.jsonl, samples.jsonl, checkpoints and,
at the end, model/ (safetensors, or a LoRA adapter) and report.html.

  vopd train --model STUDENT --teacher_model TEACHER --dataset prompts.jsonl --run_name first
  vopd train --config run.yaml --dry-run      show what the run would do and need; load no weights
  vopd train --config run.yaml --resume       resume a killed run from its newest checkpoint
  accelerate launch -m vopd train ...         several GPUs
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence

import psutil
import torch

from vopd.data.chat import Chat
from vopd.data.prompts import Prompts
from vopd.data.tokenized import PROMPT, TEACHER_PROMPT_IDS, asked, first_ids, token_lengths
from vopd.errors import byte_size, counted
from vopd.folders import nearest_existing
from vopd.models import end_ids
from vopd.models.footprint import Footprint, Step, footprint
from vopd.placement import Placement
from vopd.run.directory import is_main_process
from vopd.run.facts import Facts, planned_start, teacher_places
from vopd.run.plan import Plan
from vopd.run.train import check_run, train
from vopd.teachers.ahead import STEP, STEP_ON_HOST
from vopd.teachers.build import Served
from vopd.teachers.itself import AVERAGE, FROZEN
from vopd.teachers.server.settings import sends_states
from vopd.training import VOPDConfig
from vopd.training.monitoring.first_lines import first_lines

_SHOWN_IDS = 40


def run(arguments: Sequence[str]) -> int:
    """Run `vopd train` with these arguments and return its exit code."""
    checked = check_run("train", __doc__, arguments)
    if not checked.plan.options.dry_run:
        train(checked)
        return 0
    text = dry_run(checked.plan, checked.facts)
    if is_main_process():
        print(text)
    return 0


def dry_run(plan: Plan, facts: Facts) -> str:
    """Return what a run would do and need, found without loading weights."""
    config = plan.config
    assert facts.student is not None and facts.prompts is not None  # `gather_facts` insisted on them
    memory = estimate(plan, facts)
    frozen = any(not weight.requires_grad for weight in facts.student.skeleton.parameters())
    start = planned_start(plan, facts)
    sections = [
        first_lines(config, start),
        _prompts(facts.prompts, Chat.of(config, facts.student.tokenizer)),
        _vocabularies(plan, facts),
        _memory(config, memory, start.placement),
        _disk(plan, memory.gradients if frozen else memory.student, memory.optimizer, start.steps),
        facts.benchmarks,
        [f"note: {note}" for note in facts.notes],
    ]
    return "\n\n".join("\n".join(section) for section in sections if section)


def estimate(plan: Plan, facts: Facts) -> Footprint:
    """Estimate the memory that training needs on each device."""
    config, options = plan.config, plan.options
    assert facts.student is not None and facts.prompts is not None
    tokens = max(token_lengths(facts.prompts.dataset)) + config.max_completion_length
    generated = config.per_device_train_batch_size * config.gradient_accumulation_steps
    budget = config.max_tokens_per_micro_batch
    local = {*teacher_places(plan, served=False).values()}
    behind = {*teacher_places(plan).values()} - local if sends_states(config) else set()
    kept = (STEP, STEP_ON_HOST) if config.device.type == "cpu" else (STEP,)
    step = Step(
        sequences=min(generated, max(1, budget / tokens)) if budget else config.per_device_train_batch_size,
        generated=0 if config.use_vllm else generated,
        tokens=tokens,
        completion_tokens=config.max_completion_length,
        checkpointing=_checkpointing(config),
        half=bool(config.bf16 or config.fp16),
        device=config.device.type,
        # This process has read tokenizers and prompts, and imported what training needs.
        process=psutil.Process().memory_info().rss if config.device.type == "cpu" else 0,
        kept=generated if config.teacher_scoring in kept else 0,
        sent=generated,
        sent_bytes=getattr(torch, config.teacher_server_dtype).itemsize,
    )
    return footprint(
        facts.student.skeleton,
        [facts.teachers[place].skeleton for place in local],
        student_dtype=options.dtype,
        teacher_dtype=options.teacher_dtype,
        quantization=options.quantization,
        teacher_quantization=options.teacher_quantization,
        teacher_offload=config.teacher_offload,
        copied=any(source in (FROZEN, AVERAGE) for source in plan.teachers.values()),
        served=[facts.teachers[place].skeleton for place in behind],
        step=step,
    )


def _checkpointing(config: VOPDConfig) -> bool:
    return bool(config.gradient_checkpointing or getattr(config, "activation_checkpointing", False))


def _prompts(prompts: Prompts, chat: Chat) -> list[str]:
    (first,) = asked(prompts.dataset.select([0]), PROMPT)
    plain = [one.kind for one in prompts.examples] == ["text"]
    ids, decode = first_ids(prompts.dataset), chat.tokenizer.decode
    apart = [TEACHER_PROMPT_IDS] if TEACHER_PROMPT_IDS in prompts.dataset.column_names else []
    shown = ", ".join(map(str, ids[:_SHOWN_IDS])) + (", ..." if len(ids) > _SHOWN_IDS else "")
    sources = (f"{entry['prompts']:,} from {entry['source']} ({entry['version']})" for entry in prompts.sources)
    return [
        f"prompts: {', '.join(sources)}",
        # repr: control characters of a dataset must not reach the terminal
        f"first prompt: {chat.text(first)!r}",
        f"its {counted(len(ids), 'token id')}: {shown}",
        f"decoded: {decode(ids)!r}",
        *(f"the teacher's: {decode(first_ids(prompts.dataset, column))!r}" for column in apart),
        *(f"{one.kind}, {one.place}: {one.text!r}" for one in prompts.examples if not plain),
    ]


def _vocabularies(plan: Plan, facts: Facts) -> list[str]:
    lines = [f"common vocabulary: {facts.vocabulary} tokens"]
    if any(isinstance(source, Served) and source.path is None for source in plan.teachers.values()):
        lines.append("teacher: checked on its server when training starts; to check it now: vopd doctor --teacher URL")
    for name, model in [("student", facts.student), *(("teacher", teacher) for teacher in facts.teachers.values())]:
        assert model is not None
        tokenizer = model.tokenizer
        tokens = [*end_ids(model.skeleton, tokenizer), tokenizer.pad_token_id]
        *ends, pad = (f"{token} {tokenizer.convert_ids_to_tokens(token)!r}" for token in tokens)
        sizes = f"{len(tokenizer)} tokens, {model.head_rows} head rows"
        lines.append(f"{name}: {sizes}, EOS {', '.join(ends)}, PAD {pad}")
    return lines


def _memory(config: VOPDConfig, needed: Footprint, placement: Placement) -> list[str]:
    if placement.divided:
        needed = needed.sharded(config.world_size)
    rows = {"student's weights": needed.student, "teacher's weights": needed.teacher}
    names = ("gradients", "optimizer", "activations", "scoring", "loss", "rollout")
    rows |= {name: getattr(needed, name) for name in names}
    if needed.states:
        rows["teacher's states"] = needed.states
    if config.device.type == "cpu":
        rows |= {"float32 heads": needed.heads, "process": needed.process}
    # On a machine without a GPU these are not the defaults of the machine that will train.
    passes = f"{config.mixed_precision} passes" if config.mixed_precision != "no" else "passes in the weights' dtype"
    checkpointing = "gradient checkpointing" if _checkpointing(config) else "no gradient checkpointing"
    lines = [f"estimated memory per device: {byte_size(needed.peak)} at the peak, with {passes} and {checkpointing}"]
    lines += [f"  {name:<18}{byte_size(size):>10}" for name, size in rows.items()]
    if needed.host and config.device.type != "cpu":
        lines.append(f"  host memory for the hidden states that a server sends in a step: {byte_size(needed.host)}")
    if config.use_vllm and config.vllm_mode == "colocate":
        lines.append(f"  vLLM takes another {config.vllm_gpu_memory_utilization:.0%} of the GPU")
    if config.world_size > 1:
        divided = f"weights, gradients and optimizer states are divided among {config.world_size} devices"
        whole = f"estimated as if each of {config.world_size} devices held all of it"
        lines.append(f"  {placement.launcher}: {divided if placement.divided else whole}")
    return lines


def _disk(plan: Plan, model: int, optimizer: int, steps: int) -> list[str]:
    """Disk space for the model and the checkpoints, each with a model and an optimizer; sizes in bytes."""
    config = plan.config
    every = config.save_steps if config.save_steps >= 1 else max(1, int(config.save_steps * steps))
    checkpoints = 0 if config.save_strategy == "no" else min(math.ceil(steps / every), config.save_total_limit or steps)
    needed = model + checkpoints * (model + optimizer)
    free = shutil.disk_usage(nearest_existing(plan.folder)).free
    what = f"the model and {counted(checkpoints, 'checkpoint')} in {plan.folder}"
    lines = [f"disk: {byte_size(needed)} for {what}; {byte_size(free)} free"]
    if needed > free:
        lines.append("  not enough: set save_total_limit, save_only_model=true, or another output_dir")
    return lines

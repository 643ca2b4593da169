"""`vopd train --dry-run`: what a run would do and need, told without loading weights."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from vopd.data.tokenized import first_ids, token_lengths
from vopd.kernels import backend_name
from vopd.models.footprint import Footprint, Step, footprint
from vopd.run.facts import Facts, loaded_teachers, step_completions, step_prompts
from vopd.run.plan import Plan

_SHOWN_IDS = 40
_GIB = 1 << 30


def report(plan: Plan, facts: Facts) -> str:
    """Return what `vopd train --dry-run` prints."""
    from vopd.training.rollout_logprobs import check_engine

    check_engine(plan.config.use_vllm, plan.config.importance_sampling, None)
    sections = [part(plan, facts) for part in (_prompt, _vocabulary, _memory, _steps, _disk)]
    sections.append(facts.benchmarks)
    notes = [f"note: {note}" for note in facts.notes]
    return "\n\n".join(["\n".join(section) for section in [*sections, notes] if section])


def steps_of(plan: Plan, prompts: int) -> tuple[int, int]:
    """Optimizer steps of an epoch and of the run; prompts that do not fill a last step are left out."""
    config = plan.config
    epoch = prompts // step_prompts(config)
    return epoch, config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * epoch)


def _prompt(plan: Plan, facts: Facts) -> list[str]:
    assert facts.prompts is not None and facts.student is not None
    text, ids = facts.prompts.dataset[0]["prompt"], first_ids(facts.prompts.dataset)
    shown = ", ".join(map(str, ids[:_SHOWN_IDS])) + (", ..." if len(ids) > _SHOWN_IDS else "")
    sources = (f"{entry['prompts']} of {entry['source']} ({entry['version']})" for entry in facts.prompts.sources)
    return [
        f"prompts: {', '.join(sources)}",
        # repr: control characters of a data set must not reach the terminal
        f"first prompt: {text!r}",
        f"its {len(ids)} ids: {shown}",
        f"which decode to: {facts.student.tokenizer.decode(ids)!r}",
    ]


def _vocabulary(plan: Plan, facts: Facts) -> list[str]:
    from vopd.teachers.build import Served

    lines = [f"common vocabulary: {facts.vocabulary} tokens"]
    if any(isinstance(source, Served) and source.path is None for source in plan.teachers.values()):
        lines.append("teacher: on its server, which is asked when training begins (vopd doctor --teacher URL)")
    assert facts.student is not None
    for name, model in [("student", facts.student), *(("teacher", teacher) for teacher in facts.teachers.values())]:
        from vopd.models import end_ids

        tokenizer, rows = model.tokenizer, len(model.skeleton.get_output_embeddings().weight)
        ends = ", ".join(_token(tokenizer, token) for token in end_ids(model.skeleton, tokenizer))
        pad = _token(tokenizer, tokenizer.pad_token_id)
        lines.append(f"{name}: {len(tokenizer)} tokens, {rows} head rows, ends at {ends}, pads with {pad}")
    return lines


def _token(tokenizer: Any, token: int) -> str:
    return f"{token} {tokenizer.convert_ids_to_tokens(token)!r}"


def _memory(plan: Plan, facts: Facts) -> list[str]:
    found = estimate(plan, facts)
    rows = {
        "student's weights": found.student,
        "teacher's weights": found.teacher,
        "gradients": found.gradients,
        "optimizer": found.optimizer,
        "activations": found.activations,
        "loss": found.loss,
        "rollout": found.rollout,
    }
    backend = backend_name(plan.config.loss_backend, plan.config.device)
    lines = [f"loss: {plan.config.estimator}, {backend} on {plan.config.device.type}"]
    lines += [f"memory of one device, about {_size(found.peak)} at its peak:"]
    lines += [f"  {name:<18}{_size(size):>10}" for name, size in rows.items()]
    if plan.config.use_vllm and plan.config.vllm_mode == "colocate":
        lines.append(f"  vLLM takes {plan.config.vllm_gpu_memory_utilization:.0%} of the GPU besides")
    if plan.config.world_size > 1:
        lines.append("  FSDP and ZeRO-3 divide weights, gradients and optimizer among the devices")
    return lines


def estimate(plan: Plan, facts: Facts) -> Footprint:
    """Return the memory that one device needs."""
    config, options = plan.config, plan.options
    assert facts.student is not None and facts.prompts is not None
    from vopd.teachers.itself import AVERAGE, FROZEN

    sequences = config.per_device_train_batch_size
    step = Step(
        sequences=sequences,
        generated=sequences * config.gradient_accumulation_steps,
        tokens=max(token_lengths(facts.prompts.dataset)) + config.max_completion_length,
        completion_tokens=config.max_completion_length,
        checkpointing=bool(config.gradient_checkpointing or getattr(config, "activation_checkpointing", False)),
        half=bool(config.bf16 or config.fp16),
        own_rollout=not config.use_vllm,
    )
    return footprint(
        facts.student.skeleton,
        [facts.teachers[path].skeleton for path in loaded_teachers(plan)],
        student_dtype=options.dtype,
        teacher_dtype=options.teacher_dtype,
        quantization=options.quantization,
        teacher_quantization=options.teacher_quantization,
        teacher_offload=config.teacher_offload,
        copied=any(source in (FROZEN, AVERAGE) for source in plan.teachers.values() if isinstance(source, str)),
        step=step,
    )


def _steps(plan: Plan, facts: Facts) -> list[str]:
    assert facts.prompts is not None
    config = plan.config
    epoch, total = steps_of(plan, len(facts.prompts.dataset))
    each, several = step_completions(config), config.num_generations
    return [
        f"steps: {total}, {epoch} to the epoch",
        f"a step: {each} completions{f', {several} of each prompt,' if several > 1 else ''} of up to "
        f"{config.max_completion_length} tokens, on {config.world_size} processes "
        f"in {config.gradient_accumulation_steps} micro-batches of {config.per_device_train_batch_size}",
        f"the run: up to {_tokens(total * each * config.max_completion_length)} sampled tokens",
    ]


def _disk(plan: Plan, facts: Facts) -> list[str]:
    assert facts.student is not None and facts.prompts is not None
    found = estimate(plan, facts)
    frozen = any(not weight.requires_grad for weight in facts.student.skeleton.parameters())
    model = found.gradients if frozen else found.student
    checkpoints = _checkpoints(plan, steps_of(plan, len(facts.prompts.dataset))[1])
    needed = model + checkpoints * (model + found.optimizer)
    free = shutil.disk_usage(_existing(plan.folder)).free
    lines = [
        f"disk: {_size(needed)} for the model and {checkpoints} checkpoints in {plan.folder}, {_size(free)} are free"
    ]
    if needed > free:
        lines.append("  that is too little: set save_total_limit, save_only_model=true, or another output_dir")
    return lines


def _checkpoints(plan: Plan, steps: int) -> int:
    config = plan.config
    if str(getattr(config.save_strategy, "value", config.save_strategy)) == "no":
        return 0
    every = config.save_steps if config.save_steps >= 1 else max(1, int(config.save_steps * steps))
    written = math.ceil(steps / every) if steps else 0
    return min(written, config.save_total_limit) if config.save_total_limit else written


def _existing(folder: Path) -> Path:
    return next(path for path in [folder, *folder.absolute().parents] if path.exists())


def _tokens(count: int) -> str:
    return f"{count / 1e6:.1f} million" if count >= 1e6 else f"{count:,}"


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB / 10 else f"{count / (1 << 20):.1f} MiB"

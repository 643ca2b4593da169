"""The commands that a user may want after a run; each works for this run as it is printed."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vopd.data.chat import chat_settings
from vopd.data.sources import TASK_PREFIX
from vopd.evaluation.grading.extract import last_box, tagged_answer
from vopd.models.files.adapter_folders import CONFIG
from vopd.reporting.run_files import SAMPLES_FILE, read_records
from vopd.training.rewards.named import GRADED

from .evaluation import EvalOptions, command
from .plan import Plan

_PLACEHOLDER = "problems.jsonl"
_OWN = f"({_PLACEHOLDER}: problems of your own, with columns problem and answer{{kind}})"
_KIND_OPEN = "; --kind says how they are graded: math, choice, tags or module:function"


def next_steps(plan: Plan, *, measured: bool, conversations: bool = False) -> list[str]:
    """The lines. `measured`: the run has already printed the command that measures its accuracy; `conversations`: its
    prompts were conversations."""
    lines = [] if measured else evaluation_lines(plan, conversations)
    lines.append(f"vopd report {shlex.quote(str(plan.folder))}")
    if (plan.folder / "model" / CONFIG).exists():
        model, merged = (shlex.quote(str(plan.folder / name)) for name in ("model", "merged"))
        lines.append(f"vopd merge --model {model} --output {merged}")
    return lines


def evaluation_lines(plan: Plan, conversations: bool = False) -> list[str]:
    """The command that evaluates the trained model as it was trained: prompts, answers, length limit.

    On the problems that the run was measured on or generated, or else on a file of the user's, which a second line
    explains.
    """
    options, config = plan.options, plan.config
    shared: dict[str, Any] = {"model": str(plan.folder / "model"), "device": "cpu" if config.use_cpu else "auto"}
    if config.eval_benchmarks:
        return [command(EvalOptions(**shared, **_benchmarks(config)))]
    shared |= {
        "template": options.prompt_template or "{problem}",
        **chat_settings(config, config.chat_template or conversations),
        "max_new_tokens": config.max_completion_length,
    }
    dataset = options.dataset if isinstance(options.dataset, str) else ""
    if dataset.startswith(TASK_PREFIX):
        task = {"task": dataset, "task_options": options.dataset_options, "seed": config.seed + 1}
        return [command(EvalOptions(**shared, **task))]
    kind = answer_kind(options.reward_funcs, plan.folder)
    explained = _OWN.format(kind=_KIND_OPEN if kind is None else "")
    return [command(EvalOptions(**shared, data=_PLACEHOLDER, kind=kind)), explained]


def _benchmarks(config: Any) -> dict[str, Any]:
    """The evaluations during the run, on the same questions with the same prompts."""
    return {
        "benchmark": ",".join(config.eval_benchmarks),
        "kind": config.eval_benchmark_kind,
        "count": config.eval_benchmark_limit,
        "samples": config.eval_benchmark_samples,
        "max_new_tokens": config.eval_benchmark_max_new_tokens or config.max_completion_length,
        "template": config.eval_benchmark_template,
        **chat_settings(config, bool(config.eval_benchmark_chat_template)),
    }


def answer_kind(rewards: Sequence[str], folder: Path) -> str | None:
    """How the run's answers are graded: as by its reward, or by the form that most of its samples have; else None."""
    named = next((name for name in rewards if name in GRADED), None)
    if named is not None:
        return named
    texts = [str(record.get("completion", "")) for record in read_records(folder / SAMPLES_FILE)]
    for kind, read in (("tags", tagged_answer), ("math", last_box)):
        if texts and 2 * sum(read(text) is not None for text in texts) > len(texts):
            return kind
    return None

"""Check the settings of a training run without loading weights.

Checks options, estimator, sampling, tokenizers, vocabularies and prompts. Takes the options of `vopd train` and writes
nothing. Models and datasets that are not on this machine are skipped and listed; `vopd train --dry-run` needs them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vopd.run.plan import Plan


def run(arguments: Sequence[str]) -> int:
    """Run `vopd validate` with these arguments and return its exit code."""
    # Set before anything that reads it is imported: validation must not wait for the network.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from vopd.errors import counted
    from vopd.run.directory import is_main_process
    from vopd.run.facts import gather_facts
    from vopd.run.plan import plan_run
    from vopd.run.train import plan_accuracy

    plan = plan_run("validate", __doc__, arguments)
    facts = gather_facts(plan, far=False)
    accuracy = plan_accuracy(plan)
    lines = [f"note: {note}" for note in facts.notes]
    lines += [f"note: {package} is not installed here; training needs it" for package in _missing(plan)]
    if plan.config.loss_backend == "triton" and plan.config.device.type != "cuda":
        lines.append("note: this machine has no GPU for loss_backend=triton; training needs one")
    if facts.vocabulary is not None:
        lines.append(f"common vocabulary: {facts.vocabulary} tokens")
    if facts.prompts is not None:
        lines.append(f"prompts: {len(facts.prompts.dataset):,}")
    lines += facts.benchmarks
    if accuracy is not None:
        lines.append(f"accuracy is measured on {accuracy.name}: {counted(accuracy.problems, 'problem')}")
    if is_main_process():
        print("\n".join([*lines, "the settings are valid"]))
    return 0


def _missing(plan: Plan) -> list[str]:
    """The packages that these settings need and this machine, perhaps not the one that trains, does not have."""
    from vopd.errors import installed

    quantized = plan.options.quantization or plan.options.teacher_quantization
    needed = {
        "vllm": plan.config.use_vllm,
        "bitsandbytes": quantized is not None,
        "triton": plan.config.loss_backend == "triton",
    }
    return [name for name, used in needed.items() if used and not installed(name)]

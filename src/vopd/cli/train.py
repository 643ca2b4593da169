"""`vopd train`: models, prompts and settings in, a run directory with a trained model out."""

from __future__ import annotations

from collections.abc import Sequence

from vopd.run.facts import look
from vopd.run.plan import plan_run
from vopd.run.train import plan_accuracy, train

SUMMARY = """\
Train a student to match a teacher on the student's own samples.

Writes OUTPUT_DIR/RUN_NAME with resolved_config.yaml, metrics.jsonl, samples.jsonl, checkpoints and, at the end,
model/ (safetensors) and report.html. On several GPUs: accelerate launch -m vopd train ...
"""


def run(arguments: Sequence[str]) -> int:
    """Run `vopd train` with these arguments and return its exit code."""
    plan = plan_run("train", SUMMARY, arguments)
    if plan.options.dry_run:
        from .shared.dry_run import report

        plan_accuracy(plan)  # whose problems must be there
        print(report(plan, look(plan)))
    else:
        train(plan)
    return 0

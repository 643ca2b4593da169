"""One run of the study: as `vopd.experiments.one_run`, but measured as plan.md says.

Every seed has held-out problems and random numbers of its own, the same for all estimators.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from studies.claims.design import Size, held_out_file
from vopd.experiments import one_run
from vopd.experiments.grid import config_of
from vopd.experiments.held_out import HeldOut, outcomes, read_held_out
from vopd.experiments.measure import Evaluator, checkpoints_of, completion_reverse_kl, held_out_rollouts
from vopd.experiments.rollouts import Rollout
from vopd.run.exit_codes import report_error

BLOCKS = 20


def measure(evaluator: Evaluator, folder: Path) -> dict[str, Any]:
    """Reverse KL of the checkpoints that the plan names, and the final model's accuracy, greedy and sampled.

    `reverse_kl` has for each step the sum of the divergence and the number of tokens of every block of completions.
    """
    seed, size = _seed_and_size(evaluator, folder)
    problems = read_held_out(folder.parent / held_out_file(seed))
    blocks: list[tuple[int, list[list[float]]]] = []
    model, rollouts = None, []
    for step, path in checkpoints_of(folder):
        if step in size.curve_steps:
            model = evaluator.models.student(path)
            asked = problems if step in size.last_steps else problems[: size.curve_problems]
            rollouts = _rollouts(evaluator, model, asked, _noise_seed(seed, step))
            blocks.append((step, _blocks(evaluator, model, rollouts)))
    return {
        "reverse_kl": blocks,
        "accuracy": _share(evaluator.answers(model, problems)[0]),
        "sampled_accuracy": _share(_graded(evaluator, problems, rollouts)),
    }


def _seed_and_size(evaluator: Evaluator, folder: Path) -> tuple[int, Size]:
    options = yaml.safe_load(config_of(folder.parent, folder.name).read_text())
    plan = evaluator.plan
    return options["seed"], Size(options["max_steps"], plan.problems, plan.curve_problems)


def _noise_seed(seed: int, step: int) -> int:
    """Far apart, because a measurement counts up from its seed."""
    return 1_000_000 * seed + 4_000 * step


def _rollouts(evaluator: Evaluator, model: Any, problems: list[HeldOut], seed: int) -> list[Rollout]:
    models, limit = evaluator.models, evaluator.plan.max_new_tokens
    return held_out_rollouts(
        model, models.tokenizer, evaluator.prompts(problems), max_new_tokens=limit, seed=seed,
        vocabulary=models.vocabulary,
    )  # fmt: skip


def _blocks(evaluator: Evaluator, model: Any, rollouts: list[Rollout]) -> list[list[float]]:
    """[sum of the divergence, number of tokens] of each block."""
    sums = completion_reverse_kl(model, evaluator.models.teacher, rollouts, vocabulary=evaluator.models.vocabulary)
    parts = zip(*(values.chunk(BLOCKS) for values in sums), strict=True)
    return [[float(f"{total.sum().item():.10g}"), int(tokens.sum())] for total, tokens in parts]


def _graded(evaluator: Evaluator, problems: list[HeldOut], rollouts: list[Rollout]) -> list[bool]:
    texts = evaluator.models.tokenizer.batch_decode(
        [list(rollout.completion_ids) for rollout in rollouts], skip_special_tokens=True
    )
    return outcomes(problems, texts, evaluator.plan.kind)


def _share(right: list[bool]) -> float:
    return sum(right) / len(right)


if __name__ == "__main__":
    sys.exit(report_error(lambda: one_run.main(sys.argv[1:], measure)))

"""One run of the study: as `vopd.experiments.one_run`, with a choice measured apart.

The learning rates of the pilot are chosen on problems of their own, `choice.jsonl`, that no result is measured on.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vopd.experiments import one_run
from vopd.experiments.held_out import outcomes, read_held_out
from vopd.experiments.measure import Evaluator, measure_run
from vopd.models import sample
from vopd.run.exit_codes import report_error

CHOICE_FILE = "choice.jsonl"


def measure(evaluator: Evaluator, folder: Path) -> dict[str, Any]:
    """What every run gets, right answers when sampling, and the divergence on the problems that choose a rate."""
    found = measure_run(evaluator, folder)
    model = evaluator.models.student(folder / "model")
    found["sampled_outcomes"] = sampled_outcomes(evaluator, model)
    path = folder.parent / CHOICE_FILE
    if path.is_file():
        found["choice"] = asdict(evaluator.reverse_kl(model, read_held_out(path), seed=1))
    return found


def sampled_outcomes(evaluator: Evaluator, model: Any) -> list[bool]:
    """Right or wrong for one completion a problem, sampled at temperature 1 as in training."""
    prompts = [problem.prompt for problem in evaluator.problems]
    limit = evaluator.plan.max_new_tokens
    found = sample(model, evaluator.models.tokenizer, prompts, max_new_tokens=limit, batch_size=128, seed=2)
    return outcomes(evaluator.problems, [completion.text for completion in found], evaluator.plan.kind)


if __name__ == "__main__":
    sys.exit(report_error(lambda: one_run.main(sys.argv[1:], measure)))

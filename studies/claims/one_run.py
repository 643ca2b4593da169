"""One run of the study: as `vopd.experiments.compare_run`, with the controls by name and a choice measured apart.

The learning rates of the pilot are chosen on problems of their own, `choice.jsonl`, that no result is measured on.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from studies.claims import controls
from vopd.experiments import compare_run
from vopd.experiments.held_out import read_held_out
from vopd.experiments.measure_models import Examiner, measure_run
from vopd.models import sample
from vopd.run.exit_codes import report_error

CHOICE_FILE = "choice.jsonl"


def measure(examiner: Examiner, folder: Path) -> dict[str, Any]:
    """What every run gets, right answers when sampling, and the divergence on the problems that choose a rate."""
    found = measure_run(examiner, folder)
    model = examiner.load(folder / "model")
    found["sampled_outcomes"] = sampled_outcomes(examiner, model)
    path = folder.parent / CHOICE_FILE
    if path.is_file():
        found["choice"] = asdict(examiner.reverse_kl(model, read_held_out(path), seed=1))
    return found


def sampled_outcomes(examiner: Examiner, model: Any) -> list[bool]:
    """Right or wrong for one completion a problem, sampled at temperature 1 as in training."""
    prompts = [problem.prompt for problem in examiner.problems]
    limit = examiner.plan.max_new_tokens
    found = sample(model, examiner.tokenizer, prompts, max_new_tokens=limit, batch_size=128, seed=2)
    return examiner.right(examiner.problems, [completion.text for completion in found])


if __name__ == "__main__":
    controls.install()
    sys.exit(report_error(lambda: compare_run.main(sys.argv[1:], measure)))

"""One run of a comparison in a process of its own: `python -m vopd.experiments.compare_run --folder GRID --run NAME`.

The run named "start" is no training: it measures the student before and the teacher.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vopd.run.exit_codes import report_error
from vopd.run.plan import plan_run
from vopd.run.train import train

from . import grid
from .measure_models import Examiner, Measurement, measure_run, measure_start, write_measured

Measure = Callable[[Examiner, Path], dict[str, Any]]


def main(arguments: Sequence[str], measure: Measure = measure_run) -> int:
    """Train and measure one run, or measure the start. `measure` measures a finished run."""
    parser = argparse.ArgumentParser(description="One run of a comparison.")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--run", required=True)
    given = parser.parse_args(arguments)
    folder, name = given.folder, given.run
    plan = Measurement(**json.loads((folder / grid.MEASUREMENT_FILE).read_text()))
    if name == grid.START:
        (folder / name).mkdir(exist_ok=True)
        write_measured(folder / name, measure_start(Examiner(plan)))
        return 0
    if not _is_trained(folder / name):
        resume = ["--resume", "true"] if grid.may_resume(folder / name) else []
        train(plan_run("train", "", ["--config", str(folder / "configs" / f"{name}.yaml"), *resume]))
    write_measured(folder / name, measure(Examiner(plan), folder / name))
    return 0


def _is_trained(folder: Path) -> bool:
    """Whether training had ended when the run was killed: the state is written after the model."""
    return (folder / "trainer_state.json").is_file() and (folder / "model" / "config.json").is_file()


if __name__ == "__main__":
    sys.exit(report_error(lambda: main(sys.argv[1:])))

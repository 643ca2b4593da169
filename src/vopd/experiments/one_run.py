"""One run of a comparison in its own process: `python -m vopd.experiments.one_run --folder GRID --run NAME`.

The run named "start" trains nothing: it measures the student before training and the teacher.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vopd.models.files.adapter_folders import CONFIG
from vopd.run.exit_codes import report_error

from . import grid
from .measure import Evaluator, measure_run, measure_start


def main(arguments: Sequence[str], measure: Callable[[Evaluator, Path], dict[str, Any]] = measure_run) -> int:
    """Train and measure one run, or measure the start. `measure` takes a finished run."""
    parser = argparse.ArgumentParser(description="One run of a comparison.")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--run", required=True)
    given = parser.parse_args(arguments)
    run = given.folder / given.run
    if given.run != grid.START and not _is_trained(run):
        from vopd.run.train import check_run, train  # seconds of imports that the start does not need

        resume = ["--resume", "true"] if grid.may_resume(run) else []
        train(check_run("train", "", ["--config", str(grid.config_of(given.folder, given.run)), *resume]))
    evaluator = Evaluator(grid.read_measurement(given.folder))
    grid.write_measured(run, measure_start(evaluator) if given.run == grid.START else measure(evaluator, run))
    return 0


def _is_trained(folder: Path) -> bool:
    """Whether training had ended when the run was killed: the state is written after the model."""
    saved = any((folder / "model" / name).is_file() for name in ("config.json", CONFIG))
    return saved and (folder / "trainer_state.json").is_file()


if __name__ == "__main__":
    sys.exit(report_error(lambda: main(sys.argv[1:])))

"""\
Compare estimators on two small models that ship with vopd, and write a report. Downloads nothing and needs no GPU.

The student samples answers to arithmetic problems, the teacher scores every token, and each estimator trains the
student from the same start on the same prompts. Times are processor seconds: the runs share the cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from vopd.run import directory
from vopd.run.options import read_options, setting


@dataclass
class DemoOptions:
    """The options of `vopd demo`."""

    output_dir: str = setting("runs", "folder that all runs are written to")
    run_name: str | None = setting(None, "folder of the demo inside output_dir; default: demo, demo-2, demo-3, ...")
    estimators: list[str] | None = setting(
        None, "estimators to compare: names, or module:NAME for your own; default: five, from vanilla to exact"
    )
    seeds: int = setting(1, "runs per estimator; with several, means and paired differences")
    steps: int | None = setting(None, "optimizer steps per run")
    problems: int | None = setting(None, "held-out problems for accuracy and reverse KL")
    processes: int = setting(2, "runs at a time, one thread each")


def run(arguments: Sequence[str]) -> int:
    """Run `vopd demo` with these arguments and return its exit code."""
    chosen = asdict(read_options(DemoOptions, "demo", __doc__, arguments))
    from vopd.experiments.demo import run_demo

    output_dir, name = chosen.pop("output_dir"), chosen.pop("run_name")
    folder = directory.run_directory(output_dir, name or _free_name(output_dir))
    directory.check_free(folder)
    run_demo(folder, **{name: value for name, value in chosen.items() if value is not None})
    return 0


def _free_name(output_dir: str) -> str:
    names = (f"demo-{number}" if number > 1 else "demo" for number in count(1))
    return next(name for name in names if not (Path(output_dir) / name).exists())

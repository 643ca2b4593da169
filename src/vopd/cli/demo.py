"""Distil an embedded pair of small models on this computer and write a report. Downloads nothing and needs no GPU."""

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

    output_dir: str = setting("runs", "folder of all runs")
    run_name: str | None = setting(None, "folder of the demo in output_dir; default: demo, demo-2, demo-3, ...")
    estimators: list[str] | None = setting(
        None, "names to compare, or module:NAME of your own; default: five, from vanilla to exact"
    )
    seeds: int = setting(1, "runs of each estimator; with several, means and paired differences")
    steps: int | None = setting(None, "optimizer steps of a run")
    problems: int | None = setting(None, "held-out problems that measure accuracy and reverse KL")
    processes: int = setting(2, "runs at a time, one thread each")


def run(arguments: Sequence[str]) -> int:
    """Run `vopd demo` with these arguments and return its exit code."""
    chosen = asdict(read_options(DemoOptions, "demo", __doc__, arguments))
    from vopd.experiments.demo import run_demo

    output_dir, name = chosen.pop("output_dir"), chosen.pop("run_name")
    folder = directory.run_directory(output_dir, name or _free_name(output_dir))
    directory.create(folder, resume=False)
    run_demo(folder, **{name: value for name, value in chosen.items() if value is not None})
    return 0


def _free_name(output_dir: str) -> str:
    names = (f"demo-{number}" if number > 1 else "demo" for number in count(1))
    return next(name for name in names if not (Path(output_dir) / name).exists())

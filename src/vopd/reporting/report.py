"""The report of a run or a comparison: one self-contained page, its figures as PNG and its data as CSV."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from vopd.errors import DataError, MissingExtraError

from .comparison import COMPARISON_FILE, MEASUREMENT_FILE
from .comparison_report import comparison_report
from .png import write_png
from .run_files import METRICS_FILE, STATE_FILE
from .run_report import progress_line, run_report
from .variance_report import read_variance, variance_report

logger = logging.getLogger("vopd")

_PATIENCE = 30
"""Looks at an unchanged run after which the watcher says so: a run that was killed leaves no sign of its end."""


def write_report(folder: str | Path) -> Path:
    """Write report.html into the folder of a run, a comparison or a `vopd variance`, and report/NAME.png and .csv.

    Replaces an older report. Without matplotlib there are no PNG files.

    Returns:
        The page's path.

    Raises:
        DataError: the folder is none of these, or has a file that vopd did not write.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"there is no folder '{folder}'; give that of a run, such as runs/first")
    if (folder / COMPARISON_FILE).is_file():
        text, figures = comparison_report(folder)
    elif (folder / METRICS_FILE).is_file():
        text, figures = run_report(folder)
    elif (variance := read_variance(folder)) is not None:
        text, figures = variance_report(folder, variance)
    else:
        raise DataError(
            f"'{folder}' has neither {METRICS_FILE} nor {COMPARISON_FILE}; give the folder of a `vopd train` run, a "
            "`vopd variance`, or a finished `vopd demo` or `vopd compare`"
        )
    data = folder / "report"
    data.mkdir(exist_ok=True)
    for figure in figures:
        (data / f"{figure.name}.csv").write_text(figure.csv(), encoding="utf-8")
    try:
        for figure in figures:
            write_png([figure], data / f"{figure.name}.png")
    except MissingExtraError as error:
        logger.info("no PNG files: %s", error)
    return _write_page(folder, text)


def watch_report(folder: str | Path, interval: float, say: Callable[[str], None] = print) -> Path:
    """Rewrite the page of a run whenever metrics.jsonl has grown, until training has ended or Ctrl-C.

    Training has ended when trainer_state.json, which `vopd train` writes after the model, is newer than metrics.jsonl.
    While it runs the page reloads itself every `interval` seconds, and CSV and PNG files are left for the end.

    Args:
        folder: of a run; it need not have logged a step yet.
        interval: seconds between two looks at the folder.
        say: takes one line per rewrite.

    Returns:
        The page's path.

    Raises:
        DataError: no such folder; or, once training has ended, as `write_report`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"there is no folder '{folder}'; give the folder of a `vopd train` run")
    compared = any((folder / name).is_file() for name in (COMPARISON_FILE, MEASUREMENT_FILE))
    if compared or read_variance(folder) is not None:
        raise DataError(f"'{folder}' is not a training run; leave out --watch, or watch one of the runs in it")
    written: int | None = None  # size of metrics.jsonl at the last rewrite
    seen, looks, told = 0, 0, ""
    try:
        while not _ended(folder):
            size = _size(folder / METRICS_FILE)
            seen, looks = size, looks + 1 if size == seen else 0
            if looks == _PATIENCE:
                say(f"nothing new in {_PATIENCE} looks; if the run was stopped, press Ctrl-C")
            try:
                if size != written:
                    text, _ = run_report(folder, reload=interval)
                    path, written = _write_page(folder, text), size
                    say(f"{time.strftime('%H:%M:%S')}  {progress_line(folder)}  written to {path}")
            except DataError as error:  # a file that is being written: try again
                fault = "the first logged step" if size <= 0 else str(error)
                if fault != told:
                    told = fault
                    say(f"waiting for {told}" if size <= 0 else f"trying again: {told}")
            time.sleep(interval)
        say("training has ended")
    except KeyboardInterrupt:
        if written is None:  # there is nothing to show yet
            raise
        say("stopped watching")
    return write_report(folder)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _ended(folder: Path) -> bool:
    """Whether training has ended. A resumed run rewrites metrics.jsonl first, so an older state does not count."""
    state, metrics = folder / STATE_FILE, folder / METRICS_FILE
    return state.is_file() and metrics.is_file() and state.stat().st_mtime_ns >= metrics.stat().st_mtime_ns


def _write_page(folder: Path, text: str) -> Path:
    """Replace report.html in one move: a browser may be reading it, and a run and its watcher may both write."""
    path, part = folder / "report.html", folder / f".report-{os.getpid()}.html"
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
    return path

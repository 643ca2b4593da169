"""The report of a run or of a comparison: one page that stands alone, its figures as PNG and its data as CSV."""

from __future__ import annotations

import logging
from pathlib import Path

from vopd.errors import DataError, MissingExtraError

from .comparison import COMPARISON_FILE
from .comparison_report import comparison_report
from .png import write_png
from .run_files import METRICS_FILE
from .run_report import run_report
from .variance_report import read_variance, variance_report

logger = logging.getLogger("vopd")


def write_report(folder: str | Path) -> Path:
    """Write report.html into the directory of a run, a comparison or a `vopd variance`, and report/NAME.png and .csv.

    An older report is replaced. Without matplotlib there are no PNG files.

    Returns:
        The page's path.

    Raises:
        DataError: the directory is none of these, or holds a file that vopd did not write.
    """
    folder = Path(folder)
    if (folder / COMPARISON_FILE).is_file():
        text, figures = comparison_report(folder)
    elif (folder / METRICS_FILE).is_file():
        text, figures = run_report(folder)
    elif (variance := read_variance(folder)) is not None:
        text, figures = variance_report(folder, variance)
    else:
        raise DataError(
            f"'{folder}' has neither {METRICS_FILE} nor {COMPARISON_FILE}; give the folder of a `vopd train` run, of a "
            "`vopd variance`, or of a finished `vopd demo` or `vopd compare`"
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
    path = folder / "report.html"
    path.write_text(text, encoding="utf-8")
    return path

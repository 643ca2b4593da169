"""\
Write DIRECTORY/report.html, one page that loads nothing from elsewhere, with its figures and data in DIRECTORY/report.

DIRECTORY is that of a `vopd train` run, finished or not, of a `vopd variance`, or of a `vopd demo` or `vopd compare`:
vopd report DIRECTORY. The page of a run or a comparison also shows what `vopd variance --output_dir DIRECTORY
--run_name variance` measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vopd.run.options import needed, read_options


@dataclass
class ReportOptions:
    """The options of `vopd report`."""

    directory: str = needed("of a run, a comparison or a measurement; may be given without its name")


def run(arguments: Sequence[str]) -> int:
    """Run `vopd report` with these arguments and return its exit code."""
    first, *rest = arguments or [""]
    if first and not first.startswith("-"):
        arguments = ["--directory", first, *rest]
    options = read_options(ReportOptions, "report", __doc__, arguments)
    from vopd.reporting.report import write_report

    print(f"written to {write_report(options.directory)}")
    return 0

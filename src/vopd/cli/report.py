"""\
Write DIRECTORY/report.html, one self-contained page, and its figures and data in DIRECTORY/report.

DIRECTORY is a folder that `vopd train` (even while it trains), `vopd variance`, `vopd compare` or `vopd demo` wrote:

  vopd report runs/first
  vopd report runs/first --watch     update the page while the run trains; stop with Ctrl-C

The page of a run or a comparison also shows what `vopd variance --output_dir DIRECTORY --run_name variance` measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vopd.errors import ConfigurationError
from vopd.run.options import needed, read_options, setting


@dataclass
class ReportOptions:
    """The options of `vopd report`."""

    directory: str = needed("folder of a run, a comparison or a variance measurement; the word --directory is optional")
    watch: bool = setting(False, "update the page whenever metrics.jsonl has grown, until training ends or Ctrl-C")
    interval: float = setting(10.0, "seconds between checks of metrics.jsonl, and between reloads of the page")

    def __post_init__(self) -> None:
        if not 0 < self.interval < math.inf:
            raise ConfigurationError(f"interval must be a number of seconds above 0, got {self.interval}")


def run(arguments: Sequence[str]) -> int:
    """Run `vopd report` with these arguments and return its exit code."""
    first, *rest = arguments or [""]
    if first and not first.startswith("-"):
        arguments = ["--directory", first, *rest]
    options = read_options(ReportOptions, "report", __doc__, arguments)
    from vopd.reporting.report import watch_report, write_report

    if options.watch:
        path = watch_report(options.directory, options.interval, lambda line: print(line, flush=True))
    else:
        path = write_report(options.directory)
    print(f"written to {path}")
    return 0

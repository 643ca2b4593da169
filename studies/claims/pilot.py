"""The pilot, which chooses each estimator's learning rate on a seed of its own: `python -m studies.claims.pilot`.

It ran once, before the plan was committed, and wrote pilot.json; the study reads that file. Repeat it into another file
with `--records FILE`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from studies.claims import design
from studies.claims.design import SMALL, Size
from studies.claims.records import Record, figure, records_of, write_records
from studies.claims.run import ENTRY
from vopd.experiments.grid import run_grid

FIRST = design.RATES[1:-1]


def run_pilot(output: Path, size: Size, jobs: int) -> list[Record]:
    """Every estimator at the middle rates, then at outer ones while the best is next to one that was not tried."""
    found: list[Record] = []
    for name, setting in design.settings().items():
        folder = output / name
        measurement = design.write_problems(setting, folder, size, [design.PILOT_SEED])
        rates = {estimator: set(FIRST) for estimator in design.ESTIMATORS[name]}
        while True:
            wanted = [(estimator, rate) for rate in design.RATES for estimator in rates if rate in rates[estimator]]
            runs = [design.grid_run(setting, folder, size, *cell, design.PILOT_SEED) for cell in wanted]
            run_grid(runs, folder, measurement, processes=jobs, entry=ENTRY, say=lambda line: print(line, flush=True))
            records = [with_figure(record) for record in records_of(name, runs, folder)]
            best = design.best_rates(records, name)
            before = {estimator: set(tried) for estimator, tried in rates.items()}
            for estimator, rate in best.items():
                rates[estimator] |= neighbours(rate)
            if rates == before:
                break
        found += records
    return found


def neighbours(rate: float) -> set[float]:
    """The rates next to this one."""
    at = design.RATES.index(rate)
    return set(design.RATES[max(0, at - 1) : at + 2])


def with_figure(record: Record) -> Record:
    """A record of the pilot: the figure in place of what it was made of."""
    if "failed" in record:
        return record
    return {**record, "reverse_kl": round(figure(record).value, 6), "error": round(figure(record).error, 6)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/pilot"))
    parser.add_argument("--records", type=Path, default=design.PILOT_FILE)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    size = SMALL if arguments.small else Size()
    write_records(run_pilot(arguments.output.resolve(), size, arguments.jobs), arguments.records)


if __name__ == "__main__":
    main()

"""The power of the primary comparisons: `python -m studies.claims.power`.

Effects and deviations are those of earlier seeds: the first study's (seeds 0 to 4, 400 completions a run), and on main
at the common rate also those of seeds 11 to 18 with 1,000 completions. plan.md has its output.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import NamedTuple

from scipy import stats
from statsmodels.stats.power import TTestPower

from studies.claims import design
from studies.claims.comparisons import LEVEL, primary
from vopd.reporting.tables import format_table

FIRST = Path(__file__).parent / "results" / "first" / "comparisons.csv"
# (first, second): mean and standard deviation of the differences of seeds 11 to 18 on main at the common rate.
LATER = {("vopd", "opd"): (-0.0228, 0.0106), ("vopd_optimal", "vopd"): (-0.0297, 0.0091)}


class Assumed(NamedTuple):
    """An effect and the deviation of the differences between seeds, in nats per token."""

    source: str
    effect: float
    deviation: float

    def power(self, seeds: int, level: float) -> float:
        """The chance that a two-sided paired t-test at this level finds the effect, in its direction."""
        return float(TTestPower().power(abs(self.effect) / self.deviation, seeds, level / 2, alternative="larger"))


def assumptions() -> dict[tuple[str, str, str], list[Assumed]]:
    """What is assumed of every primary comparison, by setting, first and second estimator."""
    found = {}
    for setting, _, first, second in primary():
        found[setting, first, second] = _first_study(setting, first, second)
        if setting == "main" and (first, second) in LATER:
            found[setting, first, second].append(Assumed("seeds 11 to 18, common rate", *LATER[first, second]))
    return found


def _first_study(setting: str, first: str, second: str) -> list[Assumed]:
    found = []
    with FIRST.open() as file:
        for row in csv.DictReader(file):
            if (row["setting"], row["metric"], row["first"], row["second"]) == (setting, "reverse_kl", first, second):
                seeds = int(row["seeds"])
                half = (float(row["high"]) - float(row["low"])) / 2
                deviation = half * math.sqrt(seeds) / stats.t.isf(0.025, seeds - 1)
                found.append(Assumed(f"first study, {row['rates']}", float(row["difference"]), deviation))
    return found


def table() -> str:
    """Effect, deviation and power of each, at the level of Holm's first step and without a correction."""
    rows, count = [], len(primary())
    for (setting, first, second), assumed in assumptions().items():
        seeds = design.SEEDS[setting]
        rows += [
            [f"{setting}: {first} - {second}", one.source, f"{one.effect:+.4f}", f"{one.deviation:.4f}", str(seeds),
             f"{one.power(seeds, LEVEL / count):.2f}", f"{one.power(seeds, LEVEL):.2f}"]
            for one in assumed
        ]  # fmt: skip
    return format_table(["comparison", "assumed from", "effect", "deviation", "seeds", "power", "uncorrected"], rows)


if __name__ == "__main__":
    print(table())

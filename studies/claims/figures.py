"""The figures of the study, drawn from studies/claims/results into docs/images/evidence.

python -m studies.claims.figures
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from studies.claims import design
from studies.claims.fixed_figures import along_training, entropy, noise_bars, samplers, top_ks, variance
from studies.claims.labels import DPI, LARGE, NATS, sheet
from studies.claims.report import RESULTS, read_kept
from studies.claims.tables import read_comparisons
from studies.claims.training_figures import curves, forest, learning, name_lines, rates
from vopd.errors import require

FIGURES = Path(__file__).parents[2] / "docs" / "images" / "evidence"


def headline(kept: Any) -> Any:
    """Noise left by each estimator beside what it does to training, on main."""
    figure = sheet(12, 3.3)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    noise_bars(left, kept.fixed["main"]["estimators"])
    left.set_title("Gradient noise left by each estimator")
    learning(right, kept.runs, "main")
    seeds = len({record["seed"] for record in kept.records if record["setting"] == "main"})
    right.set_title(f"Distance from the teacher in training, {seeds} seeds")
    right.set_ylabel(NATS)
    name_lines(right, kept.runs, "main")
    return figure


def draw_all(results: Path, folder: Path, pilot: Iterable[Mapping[str, Any]]) -> None:
    """Write every figure into `folder`, from the records in `results`."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = read_kept(results)
    with require("matplotlib", "report").rc_context(LARGE):
        figures = {
            "headline": headline(kept),
            "training": forest(read_comparisons(results / "comparisons.csv")),
            "variance": variance(kept.fixed),
            "curves": curves(kept.runs),
            "rates": rates(list(pilot), kept.study["starts"]),
            "top-ks": top_ks(kept.fixed["main"]["estimators"]),
            "samplers": samplers(kept.fixed),
            "entropy": entropy(kept.fixed),
            "along-training": along_training(kept.fixed),
        }
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=DPI)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--output", type=Path, default=FIGURES)
    arguments = parser.parse_args()
    draw_all(arguments.results, arguments.output, design.committed_pilot())


if __name__ == "__main__":
    main()

"""What each method's loss costs: benchmarks/loss.py, all methods side by side in interleaved rounds of one process."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

COST_FILE = "cost.json"
CONTESTANTS = (
    "naive full_rkl", "opd", "vopd", "vopd_optimal", "vopd_top_k, k = 20", "vopd_sparse, k = 20",
    "rao_blackwell_teacher_top_k, k = 20", "full_rkl", "top_k_rkl, k = 20",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/claims"))
    arguments = parser.parse_args()
    script = Path(__file__).parents[2] / "benchmarks" / "loss.py"
    options = ["--head", "trainable", "--rounds", "5", "--no-errors", "--json", str(arguments.output / COST_FILE)]
    subprocess.run([sys.executable, str(script), *options, "--only", *CONTESTANTS], check=True)


if __name__ == "__main__":
    main()

"""Resumes a copy of a finished run from an earlier checkpoint and compares the metrics of the steps after it.

python benchmarks/gpu/resume.py --json resume.json --run FOLDER --step N -- -m vopd train ...
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any


def metrics(run: Path) -> dict[int, dict[str, Any]]:
    """The logged steps of a run."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows if "reverse_kl" in row}


def main() -> None:
    """Copy, cut, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--step", type=int, required=True)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    whole = metrics(given.run)
    copy = given.run.with_name(f"{given.run.name}-resumed")
    shutil.copytree(given.run, copy)
    for path in (copy / "model", *copy.glob("checkpoint-*")):
        if path.name != f"checkpoint-{given.step}":
            shutil.rmtree(path)
    words = [copy.name if word == given.run.name else word for word in given.command]
    code = subprocess.run([sys.executable, *words, "--resume"]).returncode
    again = metrics(copy)
    after = [step for step in whole if step > given.step]
    names = ("reverse_kl", "loss", "grad_norm")
    pairs = [(step, name, whole[step][name], again.get(step, {}).get(name)) for step in after for name in names]
    different = [pair for pair in pairs if pair[2] != pair[3]]
    print(f"{len(pairs) - len(different)} of {len(pairs)} numbers after step {given.step} are equal", different[:3])
    largest = max((abs(a - b) for _, _, a, b in different if b is not None), default=0.0)
    found = {"equal": len(pairs) - len(different), "of": len(pairs), "largest_difference": largest}
    Path(given.json).write_text(json.dumps({**found, "exit_code": code, "first": different[:3]}))
    sys.exit(code)


if __name__ == "__main__":
    main()

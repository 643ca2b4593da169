"""Runs the tests that depend on torch, transformers and TRL with the oldest and newest versions that vopd supports.

    python tools/matrix.py [oldest|newest ...]

Each end of the range has its own environment, .venv-matrix/NAME. All other packages are as in constraints.txt for the
oldest end, and the newest that pip finds for the newest end. If the wheel of a torch version requires CUDA packages,
the version in constraints.txt is installed instead, with a message: the tests need no CUDA.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
HOME = ROOT / ".venv-matrix"
RANGED = ("torch", "transformers", "trl")
# These follow from the version of transformers.
FOLLOWING = ("tokenizers", "huggingface_hub", "safetensors", "hf-xet")
TESTS = [
    "tests/functional", "tests/estimators", "tests/kernels", "tests/models", "tests/training/test_checkpoints.py",
    "tests/training/test_config.py", "tests/training/test_heads.py", "tests/training/test_loss.py",
    "tests/training/test_resume.py", "tests/training/test_rollout_logprobs.py", "tests/training/test_stopping.py",
    "tests/training/test_trainer.py", "tests/cli/test_train.py",
]  # fmt: skip


def requirements(end: str) -> dict[str, str]:
    """Requirement of each package for pip. The oldest of >=5.20,<6 is the first release of 5.20."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = map(Requirement, [*project["dependencies"], *project["optional-dependencies"]["train"]])
    ranged = {entry.name: entry.specifier for entry in wanted if entry.name in RANGED}
    if end == "newest":
        return {name: f"{name}{bounds}" for name, bounds in ranged.items()}
    lows = {name: bound.version for name, bounds in ranged.items() for bound in bounds if bound.operator == ">="}
    return {name: f"{name}=={low}.0" for name, low in lows.items()}


def brings_cuda(pip: list[str], requirement: str) -> bool:
    """Whether pip would install CUDA packages with it, or cannot install it at all."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        asked = [*pip, "install", "--quiet", "--dry-run", "--ignore-installed", "--report", str(report), requirement]
        if subprocess.run(asked).returncode != 0:
            return True
        names = {entry["metadata"]["name"].lower() for entry in json.loads(report.read_text())["install"]}
    return any(name.startswith(("nvidia", "cuda", "triton")) for name in names)


def install(end: str) -> Path:
    """Create or update the environment of one end of the range; return its Python."""
    python = HOME / end / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(HOME / end)], check=True)
    pip = [str(python), "-m", "pip"]
    wanted, tested = requirements(end), (ROOT / "constraints.txt").read_text().splitlines()
    if brings_cuda(pip, wanted["torch"]):
        torch = next(line for line in tested if line.startswith("torch=="))
        print(f"{end}: {wanted['torch']} would install CUDA packages; using {torch} instead", flush=True)
        wanted["torch"] = torch
    subprocess.run([*pip, "install", "--quiet", wanted["torch"]], check=True)
    left_open = {*RANGED, *FOLLOWING}
    lines = tested if end == "oldest" else []
    constraints = HOME / f"{end}.txt"
    constraints.write_text("\n".join(line for line in lines if line.partition("==")[0] not in left_open) + "\n")
    subprocess.run(
        [*pip, "install", "--quiet", "-c", str(constraints), *wanted.values(), "-e", f"{ROOT}[train,dev]"], check=True
    )
    return python


def run(end: str) -> bool:
    """Test one end of the range."""
    python = install(end)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("PYTHONPATH", None)
    print(f"{end}:", flush=True)
    subprocess.run([python, "-m", "vopd", "doctor"], check=True, env=environment)  # prints the versions
    return subprocess.run([python, "-m", "pytest", "-q", "-n", "2", *TESTS], cwd=ROOT, env=environment).returncode == 0


def main(ends: list[str]) -> int:
    passed = {end: run(end) for end in ends or ["oldest", "newest"]}
    for end, good in passed.items():
        print(f"{end}: {'passed' if good else 'FAILED'}")
    return int(not all(passed.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`vopd doctor`: what is installed here, which devices there are, and what each estimator would run on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from vopd.run.options import options_of, parse, setting

SUMMARY = """\
Show versions, devices, extras, and what each estimator would run on. Needs nothing but the core install.
With --teacher URL show instead what a teacher server gives and which estimators that allows.
"""

# What a user meets by name in an error or a table of results.
_PACKAGES = (
    "torch", "transformers", "trl", "accelerate", "peft", "datasets", "safetensors", "reasoning-gym", "math-verify",
    "triton", "vllm", "deepspeed", "httpx", "matplotlib", "rich", "trackio", "wandb", "tensorboard",
)  # fmt: skip
_GIB = 1 << 30


@dataclass
class DoctorOptions:
    """The options of `vopd doctor`."""

    output_dir: str = setting("runs", "folder of all runs: how much room it has")
    teacher: str | None = setting(None, "address of a teacher server: what it gives, and which estimators that allows")
    teacher_server_model: str | None = setting(None, "its name of the teacher, where it serves several models")
    teacher_server_key_env: str = setting("TEACHER_API_KEY", "environment variable that holds its key")
    model: str | None = setting(None, "student, whose vocabulary is compared with the server's")
    temperature: float = setting(1.0, "of the rollouts: does the server score at it?")


def run(arguments: Sequence[str]) -> int:
    """Run `vopd doctor` with these arguments and return its exit code."""
    options = parse("doctor", SUMMARY, options_of(DoctorOptions), arguments).build(DoctorOptions)
    if options.teacher is not None:
        from .shared.doctor_teacher import report

        print("\n".join(report(options)))
        return 0
    sections = {
        "versions": _versions(),
        "extras": _extras(),
        "devices": _devices(),
        "estimators": _estimators(),
        "surroundings": _surroundings(options.output_dir),
    }
    print("\n\n".join("\n".join([f"{title}:", *(f"  {line}" for line in lines)]) for title, lines in sections.items()))
    return 0


def version_of(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing_of_extras() -> dict[str, list[str]]:
    """Return for each extra of vopd the packages of it that are not installed."""
    missing: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("vopd") or []:
        name, _, marker = requirement.partition(";")
        extra = re.search(r"extra\s*==\s*['\"](\w+)['\"]", marker)
        package = re.match(r"[A-Za-z0-9_.-]+", name.strip())
        if extra is None or package is None or package.group() == "vopd":
            continue
        found = missing.setdefault(extra.group(1), [])
        if version_of(package.group()) is None:
            found.append(package.group())
    return missing


def backend() -> str:
    """Return what the loss runs on here."""
    import torch

    from vopd.kernels import backend_name

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    return f"{backend_name('auto', torch.device(kind))} on the {'GPU' if kind == 'cuda' else 'CPU'}"


def _versions() -> list[str]:
    from vopd import __version__

    rows = {"vopd": __version__, "python": platform.python_version()}
    rows |= {package: version_of(package) or "not installed" for package in _PACKAGES}
    return [f"{name:<14}{version}" for name, version in rows.items()]


def _extras() -> list[str]:
    try:
        extras = missing_of_extras()
    except importlib.metadata.PackageNotFoundError:
        return ["not known: vopd runs from its sources without being installed"]
    return [
        f"{name:<14}{'complete' if not missing else 'lacks ' + ', '.join(missing)}"
        for name, missing in extras.items()
        if name != "all"
    ]


def _devices() -> list[str]:
    import torch

    lines = [f"CPU: {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"]
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        half = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        lines.append(f"GPU {index}: {found.name}, {found.total_memory / _GIB:.0f} GiB, {half}")
    if torch.cuda.device_count() == 0:
        lines.append("no CUDA device: training works on small models, slowly")
    return lines


def _estimators() -> list[str]:
    from vopd import ESTIMATORS

    where = backend()
    return [
        f"{name:<28}{estimator.support:<9}{'biased  ' if not estimator.unbiased else 'unbiased'}  {where}"
        for name, estimator in ESTIMATORS.items()
    ]


def _surroundings(output_dir: str) -> list[str]:
    from pathlib import Path

    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in {"", "0"}
    folder = next(path for path in [Path(output_dir).absolute(), *Path(output_dir).absolute().parents] if path.exists())
    return [
        f"Hugging Face Hub: {'offline (HF_HUB_OFFLINE)' if offline else 'reached when needed'}, telemetry off",
        # Whether there is one, never the token itself.
        f"hub token: {'set' if os.environ.get('HF_TOKEN') else 'not set in HF_TOKEN'}",
        f"room for runs in {folder}: {shutil.disk_usage(folder).free / _GIB:.0f} GiB",
    ]

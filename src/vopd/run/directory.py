"""Where a run writes: one folder a run, made once, never outside the output directory, never overwritten."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vopd.errors import ConfigurationError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def run_directory(output_dir: str | Path, name: str | None, *suggestion: str) -> Path:
    """Return the folder of run `name` in `output_dir`; without a name it gets one from the parts of `suggestion`.

    Raises:
        ConfigurationError: the name is not made of letters, digits, dots, dashes and underscores; so it can be
            neither a path nor "..".
    """
    if name is None:
        name = suggest_name(*suggestion)
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"run name {name!r} must be letters, digits, '.', '-' and '_', and begin with a letter or digit; "
            "the folder goes to output_dir"
        )
    return Path(output_dir) / name


def suggest_name(*parts: str) -> str:
    """Return a valid run name from models, estimators, tasks and files, joined with '-'.

    Of a path it takes the last part; of a trained model, runs/NAME/model, the name of its run.
    """
    cleaned = [re.sub(r"[^A-Za-z0-9.]+", "-", _label(part)).strip("-.") for part in parts]
    return "-".join(part for part in cleaned if part)[:128].strip("-.") or "run"


def _label(part: str) -> str:
    path = Path(part)
    if path.name == "model":
        return path.parent.name
    if path.name.startswith("checkpoint-"):
        return f"{path.parent.name}-{path.name.removeprefix('checkpoint-')}"
    return path.stem if path.suffix in {".jsonl", ".json", ".parquet"} else path.name


def create(folder: Path, *, resume: bool) -> None:
    """Make the folder of a run. Only the first of several processes does; the others come later or not at all.

    Raises:
        ConfigurationError: it has something in it and the run is not resumed, or it cannot be written.
    """
    if not is_main_process():
        return
    used = folder.is_dir() and any(folder.iterdir())
    if used and not resume:
        raise ConfigurationError(
            f"the run directory '{folder}' is in use; continue it with --resume or choose another --run_name"
        )
    from vopd.training.saving.checkpoints import check_writable

    check_writable(folder)


def nearest_existing(folder: Path) -> Path:
    """Return `folder`, or the nearest one above it that is there."""
    return next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())


def is_main_process() -> bool:
    """True in the first of the processes that a launcher started, and where there is only one."""
    return os.environ.get("RANK", "0") == "0"

"""The folder of a run: one per run, created once, always inside the output directory, never overwritten. A run that
fails before its first step leaves none."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from pathlib import Path

from vopd.data.files import title
from vopd.errors import ConfigurationError
from vopd.folders import check_writable, new_folder

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def run_directory(output_dir: str | Path, name: str | None, *suggestion: str) -> Path:
    """Return the folder of run `name` in `output_dir`; without a name, one is made from the parts of `suggestion`.

    Raises:
        ConfigurationError: the name has other characters than letters, digits, dots, dashes and underscores. This
            excludes paths and "..".
    """
    if name is None:
        name = suggest_name(*suggestion)
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"run name {name!r} must consist of letters, digits, '.', '-' and '_', start with a letter or digit, and "
            "have at most 128 characters; set output_dir to choose the parent folder"
        )
    return Path(output_dir) / name


def suggest_name(*parts: str) -> str:
    """Return a valid run name made from models, estimators, tasks and files, joined with '-'.

    A path contributes its last part; a trained model, runs/NAME/model, the name of its run.
    """
    cleaned = [re.sub(r"[^A-Za-z0-9.]+", "-", _label(part)).strip("-.") for part in parts]
    return "-".join(part for part in cleaned if part)[:128].strip("-.") or "run"


def _label(part: str) -> str:
    path = Path(part)
    if path.name == "model":
        return path.parent.name
    if path.name.startswith("checkpoint-"):
        return f"{path.parent.name}-{path.name.removeprefix('checkpoint-')}"
    return title(part)


def check_free(folder: Path, *, resume: bool | None = None) -> None:
    """Check that a run may be written to a folder, without creating it. Only the first of several processes does so.

    Args:
        folder: of the run.
        resume: whether the run continues what is in the folder; None for commands that cannot.

    Raises:
        ConfigurationError: the folder is not empty and the run is not resumed, or the folder cannot be written to.
    """
    if not is_main_process():
        return
    check_writable(folder)
    if any(folder.iterdir() if folder.is_dir() else ()) and not resume:
        instead = f"choose another --run_name, such as {_free(folder)}"
        if resume is not None:
            instead += ", or continue its run with --resume"
        raise ConfigurationError(f"the run directory '{folder}' is not empty; {instead}")


@contextmanager
def created(folder: Path, *own: str) -> Iterator[None]:
    """`vopd.folders.new_folder` in the first of several processes; nothing in the others."""
    with new_folder(folder, *own) if is_main_process() else nullcontext():
        yield


def _free(folder: Path) -> str:
    """The name of the run in `folder`, with the first number that no other run has."""
    stem = re.sub(r"-\d+$", "", folder.name)
    return next(name for number in count(2) if not folder.with_name(name := f"{stem}-{number}").exists())


def is_main_process() -> bool:
    """Whether this is the first of the processes that a launcher started, or the only process."""
    return os.environ.get("RANK", "0") == "0"

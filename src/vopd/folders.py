"""Folders that a user names: those of models, which must exist, and new ones, which a failure does not leave behind."""

from __future__ import annotations

import difflib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from vopd.errors import ConfigurationError, MismatchError

# Every model folder contains one of these.
CONFIGURATIONS = ("config.json", "adapter_config.json")


def check_model_folder(source: str | Path) -> bool:
    """Return whether `source` is the folder of a model; otherwise it may be a hub id.

    Raises:
        MismatchError: it is written as a path but there is no such folder, or no model in it.
    """
    path, text = Path(source), os.fspath(source)
    if not path.is_dir():
        if path.is_absolute() or text.startswith(("./", "../", "~")) or text.count("/") > 1 or not text:
            raise MismatchError(f"there is no model folder '{source}'{nearest_model(path)}")
        return False
    if not any((path / name).exists() for name in CONFIGURATIONS):
        raise MismatchError(
            f"'{source}' has no config.json; pass a folder written by save_pretrained (for a training run, one of its "
            "checkpoints or its model folder)"
        )
    return True


def nearest_model(path: Path) -> str:
    """Return a hint that names the model folder with the closest name in the same place, if there is one."""
    parent = path.expanduser().parent
    names = [entry.name for entry in parent.iterdir() if (entry / "config.json").exists()] if parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean '{path.parent / close[0]}'?" if close else ""


def listed_models(text: str) -> list[str]:
    """The models that a text names, separated by commas; a folder whose own path has a comma is one."""
    return [text] if text and Path(text).is_dir() else [name.strip() for name in text.split(",") if name.strip()]


@contextmanager
def new_folder(folder: Path, *own: str) -> Iterator[None]:
    """Create a folder for a task, and remove it again if the task fails before anything in it is of value.

    Nothing is removed from a folder that had something in it before.

    Args:
        folder: created with its parents, unless it exists.
        own: names in it, or patterns, of what the task writes before it has results. All else is of value,
            if it is not empty.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    ours = not folder.is_dir() or not any(folder.iterdir())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:  # Ctrl-C too
        if ours and _without_value(folder, own):
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            with suppress(OSError):  # a parent that something else was written to meanwhile
                for path in created:
                    path.rmdir()
        raise


def _without_value(folder: Path, own: tuple[str, ...]) -> bool:
    """Whether a folder has only empty files, besides those that the task wrote itself."""
    parts = [path for path in folder.iterdir() if not any(fnmatch(path.name, pattern) for pattern in own)]
    inside = [path for part in parts for path in (part, *part.rglob("*"))]
    return all(path.is_dir() or path.stat().st_size == 0 for path in inside)


def nearest_existing(folder: Path) -> Path:
    """Return `folder`, or its nearest parent that exists."""
    return next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())


def check_writable(folder: str | Path) -> None:
    """Raises ConfigurationError if `folder` could not be created or written to; leaves nothing."""
    try:
        with tempfile.TemporaryFile(dir=nearest_existing(Path(folder))) as probe:
            probe.write(b"vopd")
            probe.flush()
    except OSError as error:
        raise ConfigurationError(f"cannot write to '{folder}': {error.strerror}; choose another output_dir") from error

"""Finished batches on disk, from which a killed evaluation resumes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vopd.atomic import write_whole
from vopd.errors import ConfigurationError, DataError

_EDGE = 1 << 20


class OtherEvaluation(ConfigurationError):
    """A folder has an evaluation with other settings, questions or weights."""


class Journal:
    """Batches of one checkpoint and benchmark, one per line, in the order in which they finished.

    A line counts once it is complete: a line cut short by a kill is dropped when the journal is opened again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.batches = dict(_lines(path))

    def add(self, index: int, records: list[dict[str, Any]]) -> None:
        """Write a batch so that it survives a kill immediately afterwards."""
        line = json.dumps({"batch": index, "records": records}) + "\n"
        with self.path.open("a", encoding="ascii", newline="\n") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.batches[index] = records


def _lines(path: Path) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    if not path.exists():
        return
    whole, _, torn = path.read_bytes().rpartition(b"\n")
    if torn:
        os.truncate(path, len(whole) + 1 if whole else 0)
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            entry = json.loads(line)
            yield entry["batch"], entry["records"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"'{path}' line {number} is damaged; delete the file to sample its completions again"
            ) from error


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Lock a folder for this process; the lock is released when the process ends, however it ends.

    Raises:
        ConfigurationError: another process has the lock.
    """
    try:
        held = FileLock(folder / ".lock").acquire(blocking=False)
    except Timeout as error:
        raise ConfigurationError(
            f"another evaluation is running in '{folder}'; choose another folder for this one: another --run_name"
        ) from error
    with held:
        yield


def same_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Write the plan of an evaluation into its folder, or check that the folder has the same plan.

    Raises:
        OtherEvaluation: it has another one.
    """
    path = folder / "plan.json"
    if not path.exists():
        write_whole(path, json.dumps(plan, indent=2) + "\n")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name in plan if before.get(name) != json.loads(json.dumps(plan[name]))]
    if changed:
        raise OtherEvaluation(
            f"'{folder}' has an evaluation with other {' and '.join(changed)}; resume it with the same ones, or choose "
            "another folder: another --run_name"
        )


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write records as JSON lines, either all of them or none."""
    write_whole(path, "".join(json.dumps(record) + "\n" for record in records))


def weights_digest(folder: Path) -> str | None:
    """Short hash of the weight files of a local folder: names, sizes, first and last megabyte; None for a Hub id."""
    files = sorted(path for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(_EDGE))
            file.seek(max(size - _EDGE, 0))
            digest.update(file.read(_EDGE))
    return digest.hexdigest()[:16]

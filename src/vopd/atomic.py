"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file, in UTF-8, so that whoever looks finds the old text or the new one, never a part.

    The text reaches the disk under another name beside `path` before it takes its place. That the new name survives a
    loss of power as well takes a flush of the folder, which is the caller's.

    Raises:
        OSError: it could not be written; `path` is as it was.
    """
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)

"""Writes a file completely or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file in UTF-8 so that a reader finds either the old text or the new text, never a part.

    Lines end with "\\n" on every system. The text is written to disk under another name next to `path` and then
    renamed. For the rename to survive a power loss, the caller has to sync the folder.

    Raises:
        OSError: the file could not be written; `path` is unchanged.
    """
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)

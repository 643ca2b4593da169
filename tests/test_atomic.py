"""What `vopd.atomic` writes is there whole, or what stood there before is."""

from __future__ import annotations

from pathlib import Path

import pytest

from full_disk import largest_file
from vopd import atomic
from vopd.atomic import write_whole


def test_the_new_text_takes_the_place_of_the_old_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for text in ("first\n", "", "züri\n"):
        write_whole(path, text)
        assert path.read_bytes() == text.encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_whole(path, "old\n")
    with largest_file(100), pytest.raises(OSError):
        write_whole(path, "new\n" * 100)
    assert path.read_text() == "old\n"


def test_the_text_is_on_the_disk_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    sync, replace = atomic.os.fsync, atomic.os.replace
    monkeypatch.setattr(atomic.os, "fsync", lambda handle: (events.append("flushed"), sync(handle)))
    monkeypatch.setattr(atomic.os, "replace", lambda *paths: (events.append("named"), replace(*paths)))
    write_whole(tmp_path / "plan.json", "text\n")
    assert events == ["flushed", "named"]

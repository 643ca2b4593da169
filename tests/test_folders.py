"""A task that fails leaves no folder, unless there is something of value in it, or it was there before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vopd.folders import new_folder

OWN = ("settings.yaml", "train-*.jsonl", "configs")


def fail(folder: Path, write: Callable[[Path], object], error: type[BaseException] = ValueError) -> None:
    with pytest.raises(error), new_folder(folder, *OWN):
        write(folder)
        raise error


def _own_files(folder: Path) -> None:
    (folder / "configs").mkdir()
    for name in ("settings.yaml", "train-3.jsonl", "configs/a.yaml"):
        (folder / name).write_text("a: 1")
    (folder / "logs" / "empty").mkdir(parents=True)
    (folder / "metrics.jsonl").touch()
    (folder / "configs" / "link").symlink_to(folder.parents[2], target_is_directory=True)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failed_task_leaves_nothing_that_it_made(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "mine").write_text("precious")
    fail(tmp_path / "runs" / "deep" / "first", _own_files, error)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_empty_folder_is_left_as_it_was_found(tmp_path: Path) -> None:
    fail(tmp_path, _own_files)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoint-1/model", "notes.txt"])
def test_what_is_of_value_stays_with_all_beside_it(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "first"

    def write(folder: Path) -> None:
        (folder / "settings.yaml").write_text("a: 1")
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")

    fail(folder, write)
    assert (folder / name).read_text() == "{}" and (folder / "settings.yaml").exists()


def test_nothing_is_removed_from_a_folder_that_was_in_use(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("older")
    fail(tmp_path, lambda folder: (folder / "configs").mkdir())
    assert {path.name for path in tmp_path.iterdir()} == {"settings.yaml", "configs"}


def test_a_task_that_ends_well_keeps_its_folder(tmp_path: Path) -> None:
    with new_folder(tmp_path / "first", *OWN):
        pass
    assert (tmp_path / "first").is_dir()


def test_a_parent_that_others_use_meanwhile_stays(tmp_path: Path) -> None:
    fail(tmp_path / "runs" / "first", lambda folder: (folder.parent / "second").mkdir())
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["second"]

from __future__ import annotations

import os
from pathlib import Path

import pytest

from full_disk import largest_file
from messages import says
from vopd.errors import ConfigurationError
from vopd.folders import nearest_existing
from vopd.run.directory import check_free, created, run_directory, suggest_name


@pytest.mark.parametrize(
    "name", ["..", ".", "", "a/b", "../up", "/abs", "a\\b", ".hidden", "a b", "x\x1b[31m", "a" * 200]
)
def test_a_name_cannot_leave_the_output_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="run name"):
        run_directory(tmp_path, name)


@pytest.mark.parametrize("name", ["first", "qwen3-1.7b_vopd", "2026.05.01", "a..b"])
def test_good_names(tmp_path: Path, name: str) -> None:
    assert run_directory(tmp_path, name).resolve().parent == tmp_path.resolve()


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("Qwen/Qwen3-1.7B", "vopd_top_k"), "Qwen3-1.7B-vopd-top-k"),
        (("/models/../student/", "opd"), "student-opd"),
        (("runs/first/model", "data/p.jsonl"), "first-p"),
        (("runs/first/checkpoint-30",), "first-30"),
        (("..", "/"), "run"),
        (("x" * 300,), "x" * 128),
    ],
)
def test_suggested_names_are_good_names(tmp_path: Path, parts: tuple[str, ...], name: str) -> None:
    assert suggest_name(*parts) == name
    assert run_directory(tmp_path, None, *parts) == tmp_path / name
    assert run_directory(tmp_path, "mine", *parts) == tmp_path / "mine"


def test_nearest_existing(tmp_path: Path) -> None:
    assert nearest_existing(tmp_path / "runs" / "first") == nearest_existing(tmp_path) == tmp_path


class TestFree:
    def test_a_new_folder_is_free_and_stays_away(self, tmp_path: Path) -> None:
        check_free(tmp_path / "runs" / "first", resume=False)
        assert not any(tmp_path.iterdir())

    def test_refuses_a_folder_in_use_and_touches_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "metrics.jsonl").write_text("precious")
        with pytest.raises(ConfigurationError, match=says(f"{tmp_path} ... --resume ... --run_name")):
            check_free(tmp_path, resume=False)
        assert (tmp_path / "metrics.jsonl").read_text() == "precious"

    def test_a_command_that_cannot_resume_does_not_offer_it(self, tmp_path: Path) -> None:
        (tmp_path / "results.json").write_text("{}")
        with pytest.raises(ConfigurationError, match="--run_name") as raised:
            check_free(tmp_path)
        assert "--resume" not in str(raised.value)

    def test_a_resumed_run_may_have_something_in_its_folder_or_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "metrics.jsonl").write_text("precious")
        check_free(tmp_path, resume=True)
        check_free(tmp_path / "new", resume=True)
        assert (tmp_path / "metrics.jsonl").read_text() == "precious"

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "runs").write_text("a file")
        for folder in (tmp_path / "runs" / "first", tmp_path / "runs"):
            with pytest.raises(ConfigurationError, match=says(f"{folder} ... Not a directory ... output_dir")):
                check_free(folder, resume=False)

    def test_a_full_disk(self, tmp_path: Path) -> None:
        with largest_file(0), pytest.raises(ConfigurationError, match=says(f"cannot write ... {tmp_path}")):
            check_free(tmp_path / "first", resume=False)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_read_only_output(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(ConfigurationError, match="cannot write to"):
            check_free(tmp_path / "first", resume=False)

    def test_only_the_first_process_checks_and_creates(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "metrics.jsonl").write_text("")
        monkeypatch.setenv("RANK", "1")
        check_free(tmp_path, resume=False)
        with created(tmp_path / "first"):
            assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]

"""A checkpoint is complete or counts for nothing, and the last good one outlives whatever happens to the next."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from full_disk import FullDisk, largest_file
from messages import says, told
from vopd.errors import ConfigurationError, VOPDError
from vopd.training.saving import checkpoints
from vopd.training.saving.checkpoints import MANIFEST, fault, newest_valid, rotate, step_of, write_manifest

Make = Callable[..., Any]


def checkpoint(run: Path, step: int, *, complete: bool = True) -> Path:
    folder = run / f"checkpoint-{step}"
    (folder / "inner").mkdir(parents=True)
    (folder / "weights").write_bytes(b"w" * 10)
    (folder / "inner" / "state").write_bytes(b"s" * 10)
    if complete:
        write_manifest(folder, step)
    return folder


def names(run: Path) -> set[str]:
    return {path.name for path in run.iterdir()}


class TestManifest:
    def test_names_every_file_with_size_and_hash(self, tmp_path: Path) -> None:
        folder = checkpoint(tmp_path, 3)
        manifest = json.loads((folder / MANIFEST).read_text())
        assert manifest["step"] == 3 and set(manifest["files"]) == {"weights", "inner/state"}
        assert manifest["files"]["weights"] == {"bytes": 10, "sha256": hashlib.sha256(b"w" * 10).hexdigest()}
        assert fault(folder) is None and names(folder) == {"weights", "inner", MANIFEST}

    def test_is_written_after_what_it_names_is_on_the_disk(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = checkpoint(tmp_path, 3, complete=False)
        events: list[str] = []
        sync, replace = checkpoints._sync, checkpoints.os.replace
        monkeypatch.setattr(checkpoints, "_sync", lambda path: (events.append(path.name), sync(path)))
        monkeypatch.setattr(checkpoints.os, "replace", lambda *paths: (events.append("renamed"), replace(*paths)))
        write_manifest(folder, 3)
        assert {"weights", "state", "inner", "checkpoint-3"} <= set(events[: events.index("renamed")])
        assert events[-2:] == ["checkpoint-3", tmp_path.name]  # the rename itself, and the folder's own entry

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda folder: (folder / MANIFEST).unlink(), "manifest.json ... not finished"),
            (lambda folder: (folder / MANIFEST).write_text("{"), "manifest.json cannot be read"),
            (lambda folder: (folder / MANIFEST).write_text('{"files": []}'), "manifest.json cannot be read"),
            (lambda folder: (folder / "weights").unlink(), "weights is missing"),
            (lambda folder: (folder / "weights").write_bytes(b"w" * 9), "weights ... 9 bytes ... 10"),
            (lambda folder: (folder / "inner/state").write_bytes(b"s" * 9 + b"t"), "inner/state has changed"),
        ],
    )
    def test_the_newest_valid_one_is_found_and_what_is_skipped_is_named(
        self, damage: Callable[[Path], Any], message: str, tmp_path: Path
    ) -> None:
        for step in (8, 9, 10):
            checkpoint(tmp_path, step)
        damage(tmp_path / "checkpoint-10")
        found = newest_valid(tmp_path)
        assert found.path == tmp_path / "checkpoint-9"
        (line,) = found.skipped
        assert told(f"checkpoint-10 ... {message}", line)

    def test_none_is_found_where_there_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoint-x").mkdir()
        assert newest_valid(tmp_path).path is None and newest_valid(tmp_path / "none").path is None

    def test_a_renamed_checkpoint_knows_its_step(self, tmp_path: Path) -> None:
        assert step_of(checkpoint(tmp_path, 7).rename(tmp_path / "kept")) == 7


class TestRotation:
    def test_keeps_the_newest_valid_ones_and_the_best(self, tmp_path: Path) -> None:
        for step in range(1, 8):
            checkpoint(tmp_path, step, complete=step not in (3, 7))
        rotate(tmp_path, 2, str(tmp_path / "checkpoint-1"))
        # 7 was not finished: not counted, and not ours to delete while it may be under way.
        assert names(tmp_path) == {"checkpoint-1", "checkpoint-5", "checkpoint-6", "checkpoint-7"}

    @pytest.mark.parametrize("limit", [None, 0])
    def test_without_a_limit_nothing_is_deleted(self, limit: int | None, tmp_path: Path) -> None:
        checkpoint(tmp_path, 1, complete=False)
        checkpoint(tmp_path, 2)
        rotate(tmp_path, limit, None)
        assert names(tmp_path) == {"checkpoint-1", "checkpoint-2"}

    def test_the_last_one_is_there_until_the_next_is_complete(
        self, make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []
        write = checkpoints.write_manifest

        def watched(folder: Path, step: int, **facts: Any) -> None:
            seen.append(names(tmp_path / "run") & {"checkpoint-1", "checkpoint-2", "checkpoint-3"})
            write(folder, step, **facts)

        monkeypatch.setattr(checkpoints, "write_manifest", watched)
        make_trainer(max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=1).train()
        assert seen == [{"checkpoint-1"}, {"checkpoint-1", "checkpoint-2"}, {"checkpoint-2", "checkpoint-3"}]
        assert {name for name in names(tmp_path / "run") if name.startswith("checkpoint")} == {"checkpoint-3"}


# ---- resuming -----------------------------------------------------------------------------------------------------


def saving(make_trainer: Make, steps: int, **more: Any) -> Any:
    return make_trainer(max_steps=steps, save_strategy="steps", save_steps=1, **more)


def test_resume_takes_the_newest_valid_one_and_says_what_it_skipped(
    make_trainer: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = saving(make_trainer, 4)
    whole.train()
    run = tmp_path / "run"
    samples = (run / "samples.jsonl").read_text()
    (run / "checkpoint-4" / MANIFEST).unlink()
    (run / "checkpoint-3" / "optimizer.pt").write_bytes(b"")
    resumed = saving(make_trainer, 4)
    with caplog.at_level(logging.INFO, logger="vopd"):
        resumed.train(resume_from_checkpoint=True)
    assert told("skipped checkpoint-4 ... manifest.json", caplog.text)
    assert told("skipped checkpoint-3 ... optimizer.pt ... 0 bytes", caplog.text)
    assert f"resuming from {run / 'checkpoint-2'}" in caplog.text
    theirs = whole.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in resumed.model.state_dict().items())
    assert (run / "samples.jsonl").read_text() == samples
    assert fault(run / "checkpoint-3") is None and fault(run / "checkpoint-4") is None


def test_with_nothing_to_resume_the_run_starts(
    make_trainer: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint(tmp_path / "run", 1, complete=False)
    with caplog.at_level(logging.INFO, logger="vopd"):
        saving(make_trainer, 1).train(resume_from_checkpoint=True)
    assert "skipped checkpoint-1" in caplog.text and "starting at step 0" in caplog.text
    assert fault(tmp_path / "run" / "checkpoint-1") is None


def test_a_checkpoint_that_is_named_but_not_valid_is_refused(make_trainer: Make, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 1, complete=False)
    with pytest.raises(ConfigurationError, match=says(f"{folder} ... manifest.json")):
        make_trainer().train(resume_from_checkpoint=str(folder))
    with pytest.raises(ConfigurationError, match=says("checkpoint-9 ... there is no checkpoint")):
        make_trainer().train(resume_from_checkpoint=tmp_path / "checkpoint-9")


def test_later_checkpoints_of_a_run_that_goes_another_way_are_never_resumed(make_trainer: Make, tmp_path: Path) -> None:
    run = tmp_path / "run"
    saving(make_trainer, 3).train()
    other = saving(make_trainer, 2, learning_rate=1e-3)
    other.train(resume_from_checkpoint=str(run / "checkpoint-1"))
    assert newest_valid(run).path == run / "checkpoint-2"
    assert fault(run / "abandoned-checkpoint-3") is None


def test_the_same_trainer_goes_another_way_twice(make_trainer: Make, tmp_path: Path) -> None:
    run, trainer = tmp_path / "run", saving(make_trainer, 3)
    trainer.train()
    for _ in range(2):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-1"))
        shutil.rmtree(run / "abandoned-checkpoint-3")


def test_files_of_others_stay_in_the_folder_of_a_new_run(make_trainer: Make, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (1, 9):  # of another trainer, which writes no manifest
        (run / f"checkpoint-{step}").mkdir(parents=True)
        (run / f"checkpoint-{step}" / "model.safetensors").write_text("theirs")
    (run / "README.md").write_text("# My project\n")
    trainer = saving(make_trainer, 2, save_total_limit=1)
    trainer.train()
    trainer.save_model()
    assert (run / "README.md").read_text() == "# My project\n"
    kept = [path.read_text() for path in run.glob("abandoned-checkpoint-*/model.safetensors")]
    assert kept == ["theirs", "theirs"] and [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-2"]
    card = run / "checkpoint-2" / "README.md"
    (run / "README.md").write_text(card.read_text() if card.exists() else "Trained by on-policy distillation with vopd")
    trainer.create_model_card()
    assert "| optimizer steps | 2 |" in (run / "README.md").read_text()


def test_a_second_save_of_one_step_leaves_the_first(make_trainer: Make, tmp_path: Path) -> None:
    trainer = saving(make_trainer, 1)
    trainer.train()
    before = (tmp_path / "run/checkpoint-1" / MANIFEST).stat()
    trainer._save_checkpoint(trainer.model, None)
    after = (tmp_path / "run/checkpoint-1" / MANIFEST).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


class Bomb:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('code from a checkpoint was run')",))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_no_code_from_a_checkpoint_is_run(name: str, make_trainer: Make, tmp_path: Path) -> None:
    saving(make_trainer, 1).train()
    folder = tmp_path / "run" / "checkpoint-1"
    torch.save(Bomb(), folder / name)
    write_manifest(folder, 1)
    with pytest.raises(pickle.UnpicklingError, match="[Ww]eights"):
        saving(make_trainer, 2).train(resume_from_checkpoint=True)


def test_no_checkpoint_and_no_model_holds_the_pickle_of_the_arguments(make_trainer: Make, tmp_path: Path) -> None:
    trainer = saving(make_trainer, 1)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    assert (tmp_path / "run/checkpoint-1/model.safetensors").exists() and (tmp_path / "model/README.md").exists()
    assert not list(tmp_path.rglob("training_args.bin"))


# ---- disks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_a_disk_that_runs_full_at_any_write_of_a_save_loses_nothing(
    adapter: bool, make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import LoraConfig

    peft = {"peft_config": LoraConfig(r=2, target_modules=["q_proj"])} if adapter else {}
    trainer = saving(make_trainer, 1, save_total_limit=1, trainer=peft)
    trainer.train()
    run = tmp_path / "run"
    trainer.state.global_step = 2
    disk, complete = FullDisk(run, monkeypatch), 0
    for write in range(1, 1000):
        disk.start(fails_at=write)
        try:
            trainer._save_checkpoint(trainer.model, None)
        except VOPDError as error:
            assert "cannot save" in str(error) and "continue with --resume" in str(error)
            assert fault(run / "checkpoint-1") is None, f"write {write}"
            complete += fault(run / "checkpoint-2") is None
        else:
            break
    # Opened, written, flushed, renamed: far more often than there are files.
    assert disk.count == write - 1 > 2 * len(list((run / "checkpoint-2").iterdir())) > 20
    assert complete == 2  # where all that failed was to flush the renamed manifest's folder, and the folder above
    assert newest_valid(run).path == run / "checkpoint-2" and not (run / "checkpoint-1").exists()


def test_a_limit_on_the_size_of_files_loses_nothing(make_trainer: Make, tmp_path: Path) -> None:
    """The kernel itself refuses the write, at each file in turn that is the first too large one."""
    trainer = saving(make_trainer, 1)
    trainer.train()
    run = tmp_path / "run"
    trainer.state.global_step = 2
    sizes = {path.stat().st_size for path in (run / "checkpoint-1").rglob("*") if path.stat().st_size > 100}
    assert len(sizes) > 5
    for size in sorted(sizes):
        with largest_file(size - 1), pytest.raises(VOPDError, match="cannot save"):
            trainer._save_checkpoint(trainer.model, None)
        assert newest_valid(run).path == run / "checkpoint-1"
    trainer._save_checkpoint(trainer.model, None)
    assert newest_valid(run).path == run / "checkpoint-2"


def test_an_output_below_a_file_is_told_before_models_are_loaded(make_trainer: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=says(f"{tmp_path / 'file' / 'run'} ... output_dir")):
        make_trainer(model=str(tmp_path / "no-model"), output_dir=str(tmp_path / "file" / "run"))


def test_the_final_model_on_a_full_disk_is_a_clear_error(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(VOPDError, match="cannot save"):
        trainer.save_model(str(tmp_path / "file" / "model"))


pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning")

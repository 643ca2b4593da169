"""Checkpoints that can be trusted: an incomplete one is ignored, and the last good one is never lost.

A checkpoint is a folder "checkpoint-STEP" with a manifest.json that lists every other file in it with its size and
SHA-256. The manifest is written last, atomically, after all listed files have reached the disk.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from vopd.atomic import write_whole
from vopd.errors import ConfigurationError, VOPDError
from vopd.models.undisturbed import replaced
from vopd.teachers.itself import MovingAverage

from .contents import contents_of_rows
from .contract import Change, as_records, settings_of
from .origin import Origin, mismatch
from .resume import Resumed, resumed

if TYPE_CHECKING:
    from ..trainer import VOPDTrainer

logger = logging.getLogger("vopd")

MANIFEST = "manifest.json"
ABANDONED = "abandoned-"
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Found:
    """The newest valid checkpoint in a run's folder, and why each newer one was skipped."""

    path: Path | None
    skipped: tuple[str, ...]


def write_manifest(folder: Path, step: int, **facts: Any) -> None:
    """Declare the checkpoint in `folder` complete, and record `facts` about how it was made.

    All its files are on the disk before the manifest is.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(_synced_hash, paths))
    for inner in {folder, *(path.parent for path in paths)}:
        _sync(inner)
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, hashes, strict=True)
    }
    write_whole(folder / MANIFEST, json.dumps({"step": step, **facts, "files": files}, indent=1) + "\n")
    _sync(folder)
    _sync(folder.parent)


def fault(folder: Path, *, contents: bool = True) -> str | None:
    """What is wrong with the checkpoint in `folder`; None if it is valid. `contents=False` compares only sizes."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="ascii"))
        files = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        return f"it has no {MANIFEST}: saving was not finished"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} cannot be read"
    for name, (size, _) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    if contents:
        with ThreadPoolExecutor() as pool:
            found = pool.map(lambda name: _hash(folder / name), files)
            for (name, (_, digest)), now in zip(files.items(), found, strict=True):
                if now != digest:
                    return f"{name} has changed since it was saved"
    return None


def newest_valid(run: Path, *, contents: bool = True) -> Found:
    """The newest valid checkpoint in a run's folder, and each newer checkpoint that was skipped with its fault."""
    skipped: list[str] = []
    for _, path in _checkpoints(run):
        wrong = fault(path, contents=contents)
        if wrong is None:
            return Found(path, tuple(skipped))
        skipped.append(f"{path.name}: {wrong}")
    return Found(None, tuple(skipped))


def set_aside_later(run: Path, step: int, *, others: bool = False) -> None:
    """Rename valid checkpoints of steps after `step`, because a run starts there that does not continue them.

    With `others` all of them: a new run does not know whose they are, and would delete those without a manifest.
    """
    for later, path in _checkpoints(run):
        if later > step and (others or fault(path, contents=False) is None):
            aside = path.with_name(ABANDONED + path.name)
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)
            logger.warning("%s is later than step %d, where this run starts: renamed to %s", path, step, aside.name)


def rotate(run: Path, limit: int | None, best: str | None) -> None:
    """Delete all but the `limit` newest valid checkpoints and the `best` one, and the remains of unfinished ones.

    Without a limit nothing is deleted. Only sizes are compared: the newest one has just been written.
    """
    if not limit or limit < 1:
        return
    ordered = [path for _, path in _checkpoints(run)]
    valid = [path for path in ordered if fault(path, contents=False) is None]
    kept = {*valid[:limit], *(path for path in valid if best is not None and path == Path(best))}
    newest = ordered.index(valid[0]) if valid else len(ordered)
    for path in ordered[newest:]:
        if path not in kept:
            # The manifest first: a kill in between leaves no checkpoint that looks complete.
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def check_resume(run: Path, settings: Mapping[str, Any], steps: int) -> Resumed | None:
    """How a run would resume from its newest checkpoint; None if there is none. Files are not read, so it is quick.

    Raises:
        ConfigurationError: it cannot, see `resume.resumed`.
    """
    found = newest_valid(run, contents=False).path
    return None if found is None else resumed(found, step_of(found), settings, steps)


class Checkpoints:
    """Saves a trainer's checkpoints and chooses the one to resume from.

    Args:
        trainer: set up.
    """

    def __init__(self, trainer: VOPDTrainer) -> None:
        self.trainer = trainer
        self.run = Path(trainer.args.output_dir)
        self.origin = Origin.of(trainer)
        self.keep_all = False  # set when a guard stops the run: older checkpoints are then the better ones
        self.whole = False  # set when the run ends early: it has to go on, whatever save_only_model says
        self.unplanned = False  # set when only this end of the run saves a checkpoint here
        self.other_processes = False  # whether another number of processes saved the checkpoint it resumes from
        self.changes: list[Change] = []  # of settings, when the run was resumed
        self._chosen: str | None = None
        self._saved: int | None = None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What a run that resumes from these checkpoints is compared with; `vopd train`, which knows more, sets it."""
        trainer = self.trainer
        return settings_of(
            trainer.args,
            model=trainer.given.model,
            teachers=trainer.given.teachers,
            dataset=contents_of_rows(trainer.train_dataset, dated=trainer.chat.dated),
            rewards=trainer.given.rewards,
            adapter=trainer.given.adapter,
        )

    @property
    def history(self) -> str:
        """What changed when the run was resumed, for its model card."""
        return "; ".join(f"{change.name}: {change.remark()}" for change in self.changes)

    def choose(self, asked: str | bool | None) -> str | None:
        """The checkpoint to resume from, the same on every rank; None starts at step 0.

        Args:
            asked: True for the newest valid checkpoint, the path of a checkpoint, or None or False for none.

        Raises:
            VOPDError: the checkpoint is not valid, does not fit the processes of this run, or was trained with another
                objective or other data.
        """
        from accelerate.utils import broadcast_object_list

        if asked is not None and asked == self._chosen:  # `vopd train` chooses before it writes its settings
            return self._chosen
        answer: list[Any] = [None, False, [], None]
        if self.trainer.is_world_process_zero():
            try:
                answer[:3] = self._choose(asked)
            except (VOPDError, OSError) as error:  # every rank has to end, not only this one
                answer[3] = str(error)
        chosen, self.other_processes, self.changes, problem = broadcast_object_list(answer)
        if problem is not None:
            raise ConfigurationError(problem)
        self._chosen, self._saved = chosen, None if chosen is None else step_of(Path(chosen))
        return self._chosen

    def begin(self, asked: str | bool | None) -> str | None:
        """Like ``choose``, for a run that begins now: the next call chooses again."""
        chosen = self.choose(asked)
        self._chosen = None
        return chosen

    def _choose(self, asked: str | bool | None) -> tuple[str | None, bool, list[Change]]:
        """The checkpoint to resume from, whether another number of processes saved it, and what has changed since."""
        chosen = None
        if asked is True:
            found = newest_valid(self.run)
            for line in found.skipped:
                logger.warning("skipped %s", line)
            chosen = found.path
            if chosen is None:
                logger.info("no checkpoint to resume from in %s: starting at step 0", self.run)
        elif asked:
            chosen = Path(asked)
            if not chosen.is_dir() or not ((chosen / MANIFEST).exists() or _NAME.fullmatch(chosen.name)):
                raise ConfigurationError(
                    f"cannot resume from {chosen}: there is no checkpoint; name a folder checkpoint-STEP, or True for "
                    "the newest one, or start a new run with a trained model as model"
                )
            wrong = fault(chosen)
            if wrong is not None:
                raise ConfigurationError(f"cannot resume from {chosen}: {wrong}; choose another checkpoint")
        if chosen is None:
            set_aside_later(self.run, 0, others=not asked)
            return None, False, []
        step, trainer = step_of(chosen), self.trainer
        other = self._by_others(chosen)  # first: another number of prompts per step changes the number of steps
        continued = resumed(chosen, step, self.settings, trainer.args.steps_of(len(trainer.train_dataset)))
        for line in continued.told():
            logger.info("%s", line)
        set_aside_later(self.run, step)
        return str(chosen), other, continued.earlier + continued.changes

    def _by_others(self, chosen: Path) -> bool:
        """Whether another number of processes saved it.

        Raises:
            ConfigurationError: this run cannot resume from it.
        """
        saved, now = Origin.read(chosen / MANIFEST), self.origin
        if saved is None or saved == now:
            return False
        problem = mismatch(saved, now, self.trainer.args.gradient_accumulation_steps)
        if problem is not None:
            raise ConfigurationError(f"cannot resume from {chosen}: {problem}")
        if saved.processes == now.processes:
            return False
        logger.warning(
            "%s was saved with another number of processes (%d, now %d): random states are seeded again, from seed and "
            "step",
            *(chosen, saved.processes, now.processes),
        )
        return True

    def save(self, write: Callable[[], None], average: MovingAverage | None) -> None:
        """Save a checkpoint of the current step: `write` writes its files, and the manifest declares it complete.

        If the teacher is a moving `average` of the student, it is saved too.

        Raises:
            VOPDError: it could not be written. Older checkpoints are unchanged.
        """
        args, step = self.trainer.args, self.trainer.state.global_step
        only_model = args.save_only_model and not self.whole
        if self._saved == step and only_model == args.save_only_model:  # by save_steps and at the end of training
            return
        folder = self.run / f"checkpoint-{step}"
        with clear_save_errors(folder):
            if args.should_save:
                shutil.rmtree(folder, ignore_errors=True)  # remains of a run that was killed here
            self.trainer.accelerator.wait_for_everyone()
            # transformers deletes old checkpoints by their number alone, before the new one is complete.
            with replaced(args, save_total_limit=None, save_only_model=only_model):
                write()
            if average is not None:
                average.save(folder, args.should_save)
            self.trainer.accelerator.wait_for_everyone()
            if args.should_save:
                for log in self.run.glob("*.jsonl"):  # the logs up to here must be as safe as the checkpoint
                    _sync(log)
                record: dict[str, Any] = {"settings": self.settings, "changes": as_records(self.changes)}
                record |= {"unplanned": True} if self.unplanned else {}
                write_manifest(folder, step, origin=asdict(self.origin), **record)
        self._saved = step
        if args.should_save and not self.keep_all:
            rotate(self.run, args.save_total_limit, self.trainer.state.best_model_checkpoint)


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, from its name, or else from its manifest."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match.group(1) if match else json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["step"])


def _checkpoints(run: Path) -> list[tuple[int, Path]]:
    """Steps and folders, the newest first."""
    named = [path for path in run.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(((step_of(path), path) for path in named), reverse=True)


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _synced_hash(path: Path) -> str:
    _sync(path)
    return _hash(path)


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders, and flushes only files that are open for writing
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot fsync folders
            raise
    finally:
        os.close(handle)


@contextmanager
def clear_save_errors(folder: str | Path) -> Iterator[None]:
    """Turn what writers of models, tokenizers and tensors raise on a full or read-only disk into VOPDError."""
    try:
        yield
    except Exception as error:
        why = _disk_trouble(error)
        if why is None:
            raise
        raise VOPDError(
            f"cannot save {folder}: {why}; older checkpoints are unchanged: free disk space, make output_dir writable "
            "or choose another one, then continue with --resume"
        ) from error


def _disk_trouble(error: Exception) -> str | None:
    """Why the disk refused, or None if `error` is about something else."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # The tokenizers and safetensors packages: "No space left on device (os error 28)", in a plain Exception.
    if isinstance(error, SafetensorError) or (type(error) is Exception and "os error" in str(error)):
        return str(error)
    # torch.save: "unexpected pos 576 vs 534", "basic_ios::clear: iostream error" and the like
    if isinstance(error, RuntimeError) and any(
        Path(frame.filename).match("torch/serialization.py") for frame in traceback.extract_tb(error.__traceback__)
    ):
        return f"the disk may be full or read-only ({error})"
    return None

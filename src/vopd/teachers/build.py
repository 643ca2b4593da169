"""Builds the teacher objects from what a user names: a local model, a server, or the student itself."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vopd.data.tokenized import first_ids
from vopd.errors import ConfigurationError, MismatchError
from vopd.estimators.checks import check_top_k
from vopd.models import (
    compare_vocabularies,
    context_length,
    end_ids,
    end_token_difference,
    load_skeleton,
    load_tokenizer,
)
from vopd.models.head_checks import check_not_shared
from vopd.placement import Placement, head_rows

from .ahead import MICRO_BATCH, STEP_ON_HOST, Ahead
from .base import Teacher
from .columns import DEFAULT
from .itself import ADAPTER_OFF, AVERAGE, AdapterOff, MovingAverage, check_self, copied, is_self
from .local import InProcess, LocalTeacher
from .routed import RoutedTeacher
from .server.connect import Files, Pupil, connect
from .server.settings import check_payload, check_server
from .server.teacher import ServerTeacher

if TYPE_CHECKING:
    from vopd.training import VOPDTrainer

logger = logging.getLogger("vopd")


@dataclass(frozen=True)
class Served:
    """A teacher on a server.

    Attributes:
        urls: address of the server, or of several servers of the same model.
        path: folder or hub id from which its tokenizer and EOS tokens are compared, and its output head is read for
            hidden states; None compares with the server only.
    """

    urls: Any
    path: str | None = None


def sources(teacher_model: Any, teachers: Any, server_url: Any = None) -> dict[str, Any]:
    """Every teacher by name: those in `teachers`, and `teacher_model` or the one at `server_url` as the default.

    Raises:
        ConfigurationError: there is no teacher, or two defaults.
    """
    if teachers is not None and not (isinstance(teachers, dict) and all(isinstance(name, str) for name in teachers)):
        raise ConfigurationError(f"teachers must be a mapping of names to teachers, not {type(teachers).__name__}")
    teacher_model = _written(teacher_model)
    named = {name: _named(name, source) for name, source in (teachers or {}).items()}
    if server_url is not None:
        if teacher_model is not None and not isinstance(teacher_model, str):
            raise ConfigurationError(
                "teacher_model is a loaded model and teacher_server_url names another teacher; remove one of them, or "
                "set teacher_model to the path of the server's model, so that its tokenizer can be compared"
            )
        teacher_model = Served(server_url, teacher_model)
    if teacher_model is not None:
        if DEFAULT in named:
            raise ConfigurationError(
                "teacher_model is the default teacher, but teachers has another default; keep one of them"
            )
        named[DEFAULT] = teacher_model
    if not named:
        raise ConfigurationError(
            "teacher_model is missing; set it to a path, a hub id or a model, or set teacher_server_url for a teacher "
            "on a server, or teachers for several teachers"
        )
    for name, source in named.items():
        if not name or "/" in name or source is None:
            raise ConfigurationError(
                f"teachers: {name!r}: {source!r} is not a teacher with a name; write name: path, with no '/' in name"
            )
    return named


def _named(name: str, source: Any) -> Any:
    """One of several teachers: a server is written as its address, or as a mapping of address and files."""
    if isinstance(source, Mapping):
        if set(source) - {"server_url", "model"} or not source.get("server_url"):
            raise ConfigurationError(
                f"teachers: {name}: {dict(source)!r} is not a teacher on a server; write "
                "{server_url: URL, model: PATH}"
            )
        return Served(source["server_url"], _written(source.get("model")))
    return Served(source) if _is_url(source) else _written(source)


def _written(source: Any) -> Any:
    """A path as text."""
    return os.fspath(source) if isinstance(source, os.PathLike) else source


def check_sources(args: Any, given: dict[str, Any]) -> None:
    """Check the teachers of `sources` against the other settings of a VOPDConfig.

    Raises:
        ConfigurationError: a setting has no effect on any of them, or a server is that of the rollouts.
    """
    served = [source for source in given.values() if isinstance(source, Served)]
    local = [source for source in given.values() if not isinstance(source, Served) and not is_self(source)]
    if args.teacher_offload and not local and not any(source.path for source in served):
        raise ConfigurationError(
            "teacher_offload has no effect without a local teacher or the output head of one on a server; remove it"
        )
    if args.teacher_scoring != MICRO_BATCH and len(served) == len(given):
        raise ConfigurationError(
            f"teacher_scoring={args.teacher_scoring} has no effect on teachers behind servers, which score every "
            "completion once; remove it"
        )
    for source in served:
        own = copy.copy(args)
        own.teacher_server_url = source.urls
        check_server(own)
        check_payload(args, source.path is not None)
        for url in [source.urls] if isinstance(source.urls, str) else source.urls:
            if _address(url) == _rollout_server(args):
                raise ConfigurationError(
                    f"{url} is the server of the teacher and of the rollouts, which get the student's weights; serve "
                    "them on two ports, and set vllm_server_port"
                )


def _rollout_server(args: Any) -> tuple[str | None, int | None] | None:
    """Host and port of the server that generates the completions; None if none does."""
    if not args.use_vllm or args.vllm_mode != "server":
        return None
    return _address(args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}")


def _address(url: str) -> tuple[str | None, int | None]:
    found = urlsplit(url)
    port = found.port or {"http": 80, "https": 443}.get(found.scheme)
    return "127.0.0.1" if found.hostname in ("localhost", "::1") else found.hostname, port


def _is_url(source: Any) -> bool:
    return isinstance(source, str) and source.startswith(("http://", "https://"))


@dataclass(frozen=True)
class Placed:
    """A teacher that is ready for training.

    Attributes:
        teacher: the object that scores.
        name, revision: for the model card.
        vocab_size: number of ids that student and teacher share, without padding rows.
        positions: longest sequence that both models accept; None for no limit.
        average: updates the teacher if it is the moving average of the student.
    """

    teacher: Teacher
    name: str
    revision: str | None
    vocab_size: int
    positions: int | None
    average: MovingAverage | None = None


@dataclass(frozen=True)
class TeacherSet:
    """All teachers by name; names that share weights have the same object."""

    placed: dict[str, Placed]

    @property
    def first(self) -> Placed:
        """One of the teachers, whichever."""
        return next(iter(self.placed.values()))

    @property
    def vocab_sizes(self) -> dict[str, int]:
        """Number of ids that each teacher shares with the student."""
        return {name: placed.vocab_size for name, placed in self.placed.items()}

    @property
    def vocab_size(self) -> int:
        """Number of ids that the student shares with every teacher."""
        return min(self.vocab_sizes.values())

    @property
    def model(self) -> Any:
        """The first local model, prepared for training; None without any."""
        return next((p.teacher.model for p in self.placed.values() if isinstance(p.teacher, LocalTeacher)), None)

    @property
    def average(self) -> MovingAverage | None:
        """The moving average of the student, if one of the teachers is that."""
        return next((placed.average for placed in self.placed.values() if placed.average is not None), None)

    @property
    def positions(self) -> int | None:
        """Longest sequence that every model accepts, in tokens; None for no limit."""
        return min((p.positions for p in self.placed.values() if p.positions is not None), default=None)

    def as_one(self, placement: Placement, args: Any) -> Teacher:
        """The only teacher, or a `RoutedTeacher` of all of them; those in this process score when ``args`` says."""
        teachers = {name: placed.teacher for name, placed in self.placed.items()}
        here = {name: teacher for name, teacher in teachers.items() if isinstance(teacher, InProcess)}
        if args.teacher_scoring != MICRO_BATCH:
            size = args.per_device_train_batch_size, args.max_tokens_per_micro_batch
            on_host = args.teacher_scoring == STEP_ON_HOST
            ahead = {teacher: Ahead(teacher, placement, *size, on_host) for teacher in here.values()}
            teachers |= {name: ahead[teacher] for name, teacher in here.items()}
        if len(teachers) == 1:
            return next(iter(teachers.values()))
        return RoutedTeacher(teachers, frozenset(here) if placement.divided else frozenset())


def set_up_teachers(trainer: VOPDTrainer, given: dict[str, Any]) -> TeacherSet:
    """Place every teacher of `given`, which comes from `sources`; each source is placed once.

    Raises:
        ConfigurationError, MismatchError, TeacherServerError: a teacher does not fit the student, the estimator, the
            tokenizer, or this machine.
    """
    placed, made = {}, {}
    for name, source in given.items():
        revision = trainer.args.teacher_model_revision if name == DEFAULT else None
        key = (str(source), revision) if isinstance(source, str | Served) else id(source)
        if key not in made:
            if is_self(source):
                made[key] = _place_student(trainer, source)
            elif isinstance(source, Served):
                made[key] = _place_served(trainer, source, revision)
            else:
                made[key] = _place_local(trainer, source, revision)
        placed[name] = made[key]
    found = TeacherSet(placed)
    check_top_k("loss_top_k", trainer.args.loss_top_k, found.vocab_size)
    for one in made.values():
        if isinstance(one.teacher, ServerTeacher):  # it may share more ids than another teacher
            one.teacher.model = replace(one.teacher.model, vocab_size=found.vocab_size)
    return found


def _place_local(trainer: VOPDTrainer, source: Any, revision: str | None) -> Placed:
    model = trainer.load_teacher(source, revision)
    check_not_shared(trainer.model, model)
    tokenizer = _tokenizer_of(source, model, revision) or trainer.tokenizer
    vocab_size = _common_vocabulary(trainer, tokenizer, model)
    _warn_of_ends(trainer, model, tokenizer)
    name, commit = model.name_or_path, getattr(model.config, "_commit_hash", None)
    positions = context_length(trainer.model, model)
    offload = trainer.args.teacher_offload
    if offload and trainer.placement.managed:
        raise ConfigurationError("teacher_offload does not work with FSDP or DeepSpeed, which shard it; remove it")
    if offload and getattr(model, "quantization_method", None) is not None:
        raise ConfigurationError("teacher_offload does not work with a quantized teacher; choose one of the two")
    prepared = trainer.placement.place_frozen(model)
    trainer.placement.check_head(prepared, "teacher")
    teacher = LocalTeacher(prepared, trainer.placement, offload=offload)
    return Placed(teacher, name, commit, vocab_size, positions)


def _place_student(trainer: VOPDTrainer, source: str) -> Placed:
    """The student as its own teacher."""
    placement = trainer.placement

    def student() -> Any:
        return placement.unwrap(trainer.model_wrapped)

    check_self(source, hasattr(trainer.model, "peft_config"), placement.in_an_engine)
    vocab_size = _common_vocabulary(trainer, trainer.tokenizer)
    positions = context_length(trainer.model)
    if source == ADAPTER_OFF:
        return Placed(AdapterOff(lambda: trainer.model_wrapped, placement), source, None, vocab_size, positions)
    prepared = placement.place_frozen(copied(trainer.model, shared=not placement.divided))
    teacher = LocalTeacher(prepared, placement)
    average = None
    if source == AVERAGE:
        average = MovingAverage(lambda: placement.unwrap(prepared), student, trainer.args.teacher_decay)
    return Placed(teacher, source, None, vocab_size, positions, average)


def _place_served(trainer: VOPDTrainer, source: Served, revision: str | None) -> Placed:
    args, tokenizer, model = copy.copy(trainer.args), trainer.tokenizer, None
    if source.urls != args.teacher_server_url:  # one of several teachers: that name is the default one's
        args.teacher_server_url, args.teacher_server_model, args.teacher_model_init_kwargs = source.urls, None, None
    if source.path is not None:
        tokenizer, model = (load(source.path, revision=revision) for load in (load_tokenizer, load_skeleton))
        _warn_of_ends(trainer, model, tokenizer)
    vocab_size = _common_vocabulary(trainer, tokenizer, model)
    first = trainer.is_world_process_zero()
    files = None if source.path is None else Files(source.path, revision)
    pupil = Pupil(
        trainer.tokenizer, vocab_size, trainer.eos_token_ids, first_ids(trainer.train_dataset), args.device, first
    )
    teacher, notes = connect(args, files, pupil)
    if first:
        for note in notes:
            logger.info("teacher server: %s", note)
    limits = (context_length(trainer.model), teacher.positions)
    positions = min((length for length in limits if length is not None), default=None)
    assert teacher.model.vocab_size is not None  # it was compared, by the server or here
    return Placed(teacher, source.path or teacher.model.name, None, teacher.model.vocab_size, positions)


def _common_vocabulary(trainer: VOPDTrainer, tokenizer: Any, teacher: Any = None) -> int:
    """Number of ids that student and teacher share; with the rows and end tokens of `teacher`, if it is a model."""
    common = compare_vocabularies(
        trainer.tokenizer,
        tokenizer,
        student_rows=head_rows(trainer.model, "student"),
        teacher_rows=None if teacher is None else head_rows(teacher, "teacher"),
        student_ends=trainer.eos_token_ids,
        teacher_ends=() if teacher is None else end_ids(teacher, tokenizer),
    )
    if common.cut is not None and trainer.is_world_process_zero():
        logger.warning(common.cut)
    return common.size


def _warn_of_ends(trainer: VOPDTrainer, teacher: Any, tokenizer: Any) -> None:
    warning = end_token_difference(trainer.model, teacher, trainer.tokenizer, tokenizer)
    if warning:
        logger.warning(warning)


def _tokenizer_of(teacher_model: Any, teacher: Any, revision: str | None) -> Any:
    """The tokenizer saved with the teacher; None if there is none to compare."""
    source = teacher_model if isinstance(teacher_model, str) else teacher.name_or_path
    if not isinstance(teacher_model, str) and not Path(source, "tokenizer_config.json").is_file():
        return None
    try:
        return load_tokenizer(source, revision=revision)
    except MismatchError as error:
        logger.warning(f"the teacher's vocabulary was not checked and is assumed to be the student's: {error}")
        return None

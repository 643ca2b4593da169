"""From what a user names as teacher to the object that training asks: in this process, or behind a server."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vopd.data.tokenized import first_ids
from vopd.errors import ConfigurationError, MismatchError
from vopd.estimators.checks import check_gives
from vopd.models import (
    common_vocabulary,
    context_length,
    end_token_difference,
    load_skeleton,
    load_tokenizer,
    read_head,
)
from vopd.models.head_checks import check_logits, check_not_shared

from .base import Teacher
from .columns import Served
from .local import LocalTeacher
from .server.connect import connect

logger = logging.getLogger("vopd")


@dataclass(frozen=True)
class Placed:
    """A teacher that training can ask.

    Attributes:
        teacher: the object.
        model: the prepared model, None behind a server.
        name, revision: for the model card.
        vocab_size: number of real ids.
        student_rows: rows of the student's head.
        positions: longest sequence that both models take; None for no limit.
    """

    teacher: Teacher
    model: Any
    name: str
    revision: str | None
    vocab_size: int
    student_rows: int
    positions: int | None


def place_teacher(trainer: Any, source: Any, revision: str | None) -> Placed:
    """The teacher of `trainer`, checked against its student, its estimator and its tokenizer.

    Args:
        trainer: a TRLAdapter with a VOPDConfig.
        source: as `routing.sources` makes it: a path, a model, or `Served`.
        revision: of the source on the hub.

    Raises:
        ConfigurationError, MismatchError, TeacherServerError: see their messages.
    """
    if isinstance(source, Served):
        return _behind_server(trainer, source, revision)
    model = trainer.load_teacher(source, revision)
    check_not_shared(trainer.model, model)
    tokenizer = _tokenizer_of(source, model, revision) or trainer._tokenizer
    student_rows = checked_rows(trainer, trainer.model, "student")
    teacher_rows = checked_rows(trainer, model, "teacher")
    vocab_size = common_vocabulary(trainer._tokenizer, tokenizer, student_rows=student_rows, teacher_rows=teacher_rows)
    check_top_k(trainer.args, vocab_size)
    _warn_of_ends(trainer, model, tokenizer)
    name, commit = model.config.name_or_path, getattr(model.config, "_commit_hash", None)
    positions = context_length(trainer.model, model)
    if trainer.args.teacher_offload:
        _check_offload(trainer, model)
    prepared = trainer.prepared_teacher(model)
    teacher = LocalTeacher(prepared, trainer.teacher_states, offload=trainer.args.teacher_offload)
    check_gives(trainer.args.estimator, teacher.gives)
    return Placed(teacher, prepared, name, commit, vocab_size, student_rows, positions)


def _check_offload(trainer: Any, model: Any) -> None:
    """Raises ConfigurationError where a teacher cannot be moved to the host and back."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ConfigurationError("teacher_offload does not go with FSDP and DeepSpeed, which divide it; remove it")
    if getattr(model, "quantization_method", None) is not None:
        raise ConfigurationError("teacher_offload does not go with a quantized teacher; choose one of the two")


def _behind_server(trainer: Any, source: Served, revision: str | None) -> Placed:
    args, tokenizer = copy.copy(trainer.args), trainer._tokenizer
    if source.urls != args.teacher_server_url:  # one of several teachers: that name is the default one's
        args.teacher_server_url, args.teacher_server_model = source.urls, None
    if source.path is not None:
        tokenizer = load_tokenizer(source.path, revision=revision)
        _warn_of_ends(trainer, load_skeleton(source.path, revision=revision), tokenizer)
    student_rows = checked_rows(trainer, trainer.model, "student")
    vocab_size = common_vocabulary(trainer._tokenizer, tokenizer, student_rows=student_rows)
    check_top_k(args, vocab_size)
    found = connect(
        args,
        tokenizer=trainer._tokenizer,
        compared=source.path is not None,
        vocab_size=vocab_size,
        prompt=first_ids(trainer.train_dataset),
        end_ids=trainer.eos_token_ids,
    )
    if trainer.accelerator.is_main_process:
        for note in found.notes:
            logger.info("teacher server: %s", note)
    positions = min(
        (length for length in (context_length(trainer.model), found.positions) if length is not None), default=None
    )
    return Placed(found.teacher, None, source.path or found.model, None, vocab_size, student_rows, positions)


def checked_rows(trainer: Any, model: Any, name: str) -> int:
    """Rows of the model's output head, once the loss is known to be able to read it."""
    head = read_head(model, name)
    if not trainer.is_deepspeed_enabled:  # which may have sharded it already
        logits, hidden = trainer.probe(model)
        check_logits(logits, hidden, head.detach(), name)
    return len(head.weight)


def check_top_k(args: Any, vocab_size: int) -> None:
    """Raises ConfigurationError if the estimator's k is more than there are tokens."""
    if args.loss_top_k is not None and args.loss_top_k > vocab_size:
        raise ConfigurationError(f"loss_top_k={args.loss_top_k} is more than the vocabulary has ({vocab_size})")


def _warn_of_ends(trainer: Any, teacher: Any, tokenizer: Any) -> None:
    warning = end_token_difference(trainer.model, teacher, trainer._tokenizer, tokenizer)
    if warning:
        logger.warning(warning)


def _tokenizer_of(teacher_model: Any, teacher: Any, revision: str | None) -> Any:
    """The teacher's tokenizer, where it lies next to the teacher; None where it cannot be compared."""
    source = teacher_model if isinstance(teacher_model, str) else teacher.config.name_or_path
    if not isinstance(teacher_model, str) and not Path(source, "tokenizer_config.json").is_file():
        return None
    try:
        return load_tokenizer(source, revision=revision)
    except MismatchError as error:
        logger.warning(f"the teacher's vocabulary is taken to be the student's, unchecked: {error}")
        return None

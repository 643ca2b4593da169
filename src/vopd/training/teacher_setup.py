"""The teachers of a run: loaded once each, checked against the student, prepared, and put behind one object."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError, MismatchError
from ..estimators.checks import check_gives
from ..models import common_vocabulary, end_token_difference, load_tokenizer
from ..teachers import RoutedTeacher, Teacher
from .heads import check_head, check_not_shared, check_plain_logits
from .local_teacher import LocalTeacher
from .routing import DEFAULT
from .self_teacher import ADAPTER_OFF, AVERAGE, AdapterOff, MovingAverage, check_self, copied, is_self
from .trl_adapter import TRLAdapter

logger = logging.getLogger("vopd")


@dataclass
class Teachers:
    """What training needs of its teachers.

    Attributes:
        by_name: each one; the same object where names share weights.
        vocab_size: number of token ids that the student shares with all of them.
        student_rows: rows of the student's output head.
        models: the prepared models in this process, by name.
        titles: what people call them, by name, with revisions where known.
        average: keeps the moving average of the student up to date, where that is a teacher.
    """

    by_name: dict[str, Teacher] = field(default_factory=dict)
    vocab_size: int = 0
    student_rows: int = 0
    models: dict[str, Any] = field(default_factory=dict)
    titles: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    average: MovingAverage | None = None

    def as_one(self, sharded: bool) -> Teacher:
        """The only one, or all of them behind the column that names one for each row.

        Args:
            sharded: forward passes gather weights from every process.
        """
        if len(self.by_name) == 1:
            return next(iter(self.by_name.values()))
        return RoutedTeacher(self.by_name, frozenset(self.by_name) if sharded else frozenset())

    def card_facts(self) -> dict[str, Any]:
        """What a model card says of them."""
        if len(self.titles) == 1:
            ((title, revision),) = self.titles.values()
            return {"teacher": title, "teacher_revision": revision}
        return {"teacher": self.titles}


def set_up_teachers(trainer: TRLAdapter, given: dict[str, Any]) -> Teachers:
    """Load and check every teacher of `given`, names to paths, models or `self_teacher.SELF`; each source once.

    Raises:
        ConfigurationError, MismatchError: a teacher does not go with the student, the estimator, or this machine.
    """
    found = Teachers(student_rows=checked_rows(trainer, trainer.model, "student"))
    made: dict[Any, str] = {}
    for name, source in given.items():
        key = source if isinstance(source, str) else id(source)
        if key in made:
            _same(found, made[key], name)
            continue
        made[key] = name
        if is_self(source):
            _set_up_self(trainer, found, name, source)
        else:
            _set_up_model(trainer, found, name, source)
        check_gives(trainer.args.estimator, found.by_name[name].gives)
    if trainer.args.loss_top_k is not None and trainer.args.loss_top_k > found.vocab_size:
        raise ConfigurationError(
            f"loss_top_k={trainer.args.loss_top_k} is more than the vocabulary has ({found.vocab_size})"
        )
    return found


def _same(found: Teachers, first: str, name: str) -> None:
    found.by_name[name] = found.by_name[first]
    found.titles[name] = found.titles[first]


def _set_up_self(trainer: TRLAdapter, found: Teachers, name: str, source: str) -> None:
    def student() -> Any:
        return trainer.accelerator.unwrap_model(trainer.model_wrapped)

    check_self(source, hasattr(trainer.model, "peft_config"), trainer.is_deepspeed_enabled)
    rows = found.student_rows
    tokenizer = trainer._tokenizer
    found.vocab_size = common_vocabulary(tokenizer, tokenizer, student_rows=rows, teacher_rows=rows)
    found.titles[name] = (source, None)
    if source == ADAPTER_OFF:
        found.by_name[name] = AdapterOff(student, trainer.inner_states)
        return
    teacher = copied(trainer.model, shared=not trainer.is_fsdp_enabled)
    prepared = trainer.prepared_teacher(teacher)
    if source == AVERAGE:
        unwrapped = trainer.accelerator.unwrap_model
        found.average = MovingAverage(lambda: unwrapped(prepared), student, trainer.args.teacher_decay)
    found.models[name] = prepared
    found.by_name[name] = LocalTeacher(prepared, trainer.teacher_states)


def _set_up_model(trainer: TRLAdapter, found: Teachers, name: str, source: Any) -> None:
    revision = trainer.args.teacher_model_revision if name == DEFAULT else None
    teacher = trainer.load_teacher(source, revision)
    check_not_shared(trainer.model, teacher)
    tokenizer = _tokenizer_of(source, teacher, revision) or trainer._tokenizer
    found.vocab_size = common_vocabulary(
        trainer._tokenizer,
        tokenizer,
        student_rows=found.student_rows,
        teacher_rows=checked_rows(trainer, teacher, "teacher"),
    )
    warning = end_token_difference(trainer.model, teacher, trainer._tokenizer, tokenizer)
    if warning:
        logger.warning(warning)
    found.titles[name] = (teacher.config.name_or_path, getattr(teacher.config, "_commit_hash", None))
    found.models[name] = trainer.prepared_teacher(teacher)
    found.by_name[name] = LocalTeacher(found.models[name], trainer.teacher_states)


def checked_rows(trainer: TRLAdapter, model: Any, name: str) -> int:
    """Rows of a model's output head, once the loss is known to be able to read it; `name` is student or teacher."""
    head = check_head(model, name)
    if not trainer.is_deepspeed_enabled:  # which may have sharded it already
        check_plain_logits(*trainer.probe(model), head.detach(), name)
    return len(head)


def _tokenizer_of(source: Any, teacher: Any, revision: str | None) -> Any:
    """The teacher's tokenizer, where it lies next to the teacher; None where it cannot be compared."""
    path = source if isinstance(source, str) else teacher.config.name_or_path
    if not isinstance(source, str) and not Path(path, "tokenizer_config.json").is_file():
        return None
    try:
        return load_tokenizer(path, revision=revision)
    except MismatchError as error:
        logger.warning(f"the teacher's vocabulary is taken to be the student's, unchecked: {error}")
        return None

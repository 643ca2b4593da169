"""All teachers of a run: each placed once, the student itself among them, and put behind one object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vopd.models import common_vocabulary, context_length

from .base import Teacher
from .build import Placed, check_top_k, checked_rows, place_teacher
from .columns import DEFAULT, Served
from .itself import ADAPTER_OFF, AVERAGE, AdapterOff, MovingAverage, check_self, copied, is_self
from .local import LocalTeacher
from .routed import RoutedTeacher


@dataclass
class TeacherSet:
    """What training needs of its teachers.

    Attributes:
        placed: by name; the same object where names share weights.
        average: keeps the moving average of the student up to date, where that is a teacher.
    """

    placed: dict[str, Placed] = field(default_factory=dict)
    average: MovingAverage | None = None

    @property
    def first(self) -> Placed:
        """Any of them: all share the student's vocabulary."""
        return next(iter(self.placed.values()))

    @property
    def model(self) -> Any:
        """The first prepared model in this process; None without any."""
        return next((placed.model for placed in self.placed.values() if placed.model is not None), None)

    @property
    def positions(self) -> int | None:
        """Tokens that a sequence may have for every model; None for no limit."""
        return min((p.positions for p in self.placed.values() if p.positions is not None), default=None)

    def as_one(self, sharded: bool) -> Teacher:
        """The only one, or all of them behind the column that names one for each row.

        Args:
            sharded: forward passes gather weights from every process.
        """
        teachers = {name: placed.teacher for name, placed in self.placed.items()}
        if len(teachers) == 1:
            return self.first.teacher
        here = {name for name, p in self.placed.items() if isinstance(p.teacher, LocalTeacher | AdapterOff)}
        return RoutedTeacher(teachers, frozenset(here) if sharded else frozenset())

    @property
    def callbacks(self) -> list[MovingAverage]:
        """What has to be told of every step."""
        return [] if self.average is None else [self.average]

    def save_beside(self, write: Callable[[], None], trainer: Any) -> None:
        """`write` a checkpoint of the current step, and beside it what the teachers have that changes."""
        write()
        if self.average is not None:
            folder = Path(trainer.args.output_dir, f"checkpoint-{trainer.state.global_step}")
            self.average.save(folder, trainer.args.should_save)

    def card_facts(self) -> dict[str, Any]:
        """What a model card says of them."""
        if len(self.placed) == 1:
            return {"teacher": self.first.name, "teacher_revision": self.first.revision}
        return {"teacher": {name: (placed.name, placed.revision) for name, placed in self.placed.items()}}


def set_up_teachers(trainer: Any, given: dict[str, Any]) -> TeacherSet:
    """Place every teacher of `given`: names to paths, models, or `self_teacher.SELF`; each source once.

    Args:
        trainer: a TRLAdapter with a VOPDConfig.
        given: as `routing.sources` makes it.

    Raises:
        ConfigurationError, MismatchError: a teacher does not go with the student, the estimator, or this machine.
    """
    found, made = TeacherSet(), {}
    for name, source in given.items():
        key = source if isinstance(source, str) else str(source) if isinstance(source, Served) else id(source)
        if key not in made:
            revision = trainer.args.teacher_model_revision if name == DEFAULT else None
            own = is_self(source)
            made[key] = _place_self(trainer, found, source) if own else place_teacher(trainer, source, revision)
        found.placed[name] = made[key]
    return found


def _place_self(trainer: Any, found: TeacherSet, source: str) -> Placed:
    def student() -> Any:
        return trainer.accelerator.unwrap_model(trainer.model_wrapped)

    check_self(source, hasattr(trainer.model, "peft_config"), trainer.is_deepspeed_enabled)
    rows, tokenizer = checked_rows(trainer, trainer.model, "student"), trainer._tokenizer
    vocab_size = common_vocabulary(tokenizer, tokenizer, student_rows=rows, teacher_rows=rows)
    check_top_k(trainer.args, vocab_size)
    positions = context_length(trainer.model)
    if source == ADAPTER_OFF:
        return Placed(AdapterOff(student, trainer.inner_states), None, source, None, vocab_size, rows, positions)
    prepared = trainer.prepared_teacher(copied(trainer.model, shared=not trainer.is_fsdp_enabled))
    if source == AVERAGE:
        unwrap = trainer.accelerator.unwrap_model
        found.average = MovingAverage(lambda: unwrap(prepared), student, trainer.args.teacher_decay)
    return Placed(LocalTeacher(prepared, trainer.teacher_states), prepared, source, None, vocab_size, rows, positions)

"""What one run of a comparison left: right answers and reverse KL of the final model and of its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vopd.atomic import write_whole
from vopd.models import common_vocabulary, end_ids, load_model, load_tokenizer, set_end_ids

from .held_out import HeldOut, outcomes, read_held_out
from .measure import greedy_texts, held_out_reverse_kl

MEASURED_FILE = "measured.json"
SHOWN_SAMPLES = 4


@dataclass(frozen=True)
class Measurement:
    """What to measure a student against, and how.

    Attributes:
        student: the model that all runs start from.
        held_out: file of problems, see `vopd.experiments.held_out`.
        problems: how many of them the start and the final models answer.
        curve_problems: how many of them checkpoints answer.
        kind: how answers are graded where no library's verifier does it.
        device: of both models.
    """

    student: str
    teacher: str
    held_out: str
    problems: int
    curve_problems: int
    max_new_tokens: int
    kind: str = "math"
    device: str = "cpu"


class Examiner:
    """Loads teacher, tokenizer and problems once, and measures models by them."""

    def __init__(self, plan: Measurement) -> None:
        self.plan = plan
        self.tokenizer = load_tokenizer(plan.student)
        teacher_tokenizer = load_tokenizer(plan.teacher)
        self.teacher = load_model(plan.teacher, dtype="float32", device=plan.device).requires_grad_(False)
        self.vocabulary = common_vocabulary(self.tokenizer, teacher_tokenizer)
        self.teacher_end_ids = end_ids(self.teacher, teacher_tokenizer)
        self.problems = read_held_out(plan.held_out, plan.problems)

    def load(self, source: str | Path) -> Any:
        """A student, made to stop where the teacher does, as in training."""
        model = load_model(source, dtype="float32", device=self.plan.device)
        set_end_ids(model, {*end_ids(model, self.tokenizer), *self.teacher_end_ids})
        return model

    def texts(self, model: Any, problems: Sequence[HeldOut]) -> list[str]:
        return greedy_texts(model, self.tokenizer, [p.prompt for p in problems], self.plan.max_new_tokens)

    def right(self, problems: Sequence[HeldOut], texts: Sequence[str]) -> list[bool]:
        return outcomes(problems, texts, self.plan.kind)

    def reverse_kl(self, model: Any, problems: Sequence[HeldOut], seed: int = 0) -> Any:
        return held_out_reverse_kl(
            model, self.teacher, self.tokenizer, [p.prompt for p in problems], seed,
            max_new_tokens=self.plan.max_new_tokens, vocabulary=self.vocabulary,
        )  # fmt: skip


def measure_start(examiner: Examiner) -> dict[str, Any]:
    """Outcomes of the student before and of the teacher, and the student's divergence."""
    student, problems = examiner.load(examiner.plan.student), examiner.problems
    student_texts, teacher_texts = (examiner.texts(model, problems) for model in (student, examiner.teacher))
    return {
        "student_outcomes": examiner.right(problems, student_texts),
        "teacher_outcomes": examiner.right(problems, teacher_texts),
        "reverse_kl": asdict(examiner.reverse_kl(student, problems)),
        "gradient_noise": {},
        "samples": {"student before": student_texts[:SHOWN_SAMPLES], "teacher": teacher_texts[:SHOWN_SAMPLES]},
    }


def measure_run(examiner: Examiner, folder: Path) -> dict[str, Any]:
    """The final model of a run, and its checkpoints by step on fewer problems.

    The last point of both curves is the final model on these same fewer problems.
    """
    model = examiner.load(folder / "model")
    texts = examiner.texts(model, examiner.problems)
    few = examiner.problems[: examiner.plan.curve_problems]
    last = json.loads((folder / "trainer_state.json").read_text())["global_step"]
    divergence, accuracy = [], []
    for step, path in [*((step, path) for step, path in checkpoints(folder) if step < last), (last, None)]:
        at_step = model if path is None else examiner.load(path)
        right = examiner.right(few, examiner.texts(at_step, few))
        divergence.append((step, examiner.reverse_kl(at_step, few).value))
        accuracy.append((step, sum(right) / len(right)))
    return {
        "outcomes": examiner.right(examiner.problems, texts),
        "reverse_kl": asdict(examiner.reverse_kl(model, examiner.problems)),
        "curve": divergence,
        "accuracy_curve": accuracy,
        "samples": texts[:SHOWN_SAMPLES],
    }


def write_measured(folder: Path, measured: dict[str, Any]) -> None:
    """Write measured.json in one move: a run with that file is a finished one."""
    write_whole(folder / MEASURED_FILE, json.dumps(measured) + "\n")


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of a run's checkpoints, in order."""
    return sorted((int(path.name.removeprefix("checkpoint-")), path) for path in folder.glob("checkpoint-*"))

"""The measurements of a comparison: greedy accuracy and exact reverse KL on held-out problems, and gradient noise.

At the start it measures the student, the teacher and the noise of the student's gradient; after a run the final model
and its checkpoints.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vopd.data.chat import Chat, PromptError
from vopd.errors import DataError, Faults
from vopd.estimators import linear_distillation_loss
from vopd.estimators.exact import FULL_RKL
from vopd.models import (
    end_ids,
    last_hidden_states,
    load_model,
    load_skeleton,
    load_tokenizer,
    read_head,
    rollout_settings,
    sample,
    set_end_ids,
    vocabulary_size,
)
from vopd.models.head_checks import check_adapters
from vopd.reporting.run_files import read_json
from vopd.statistics import Interval, bootstrap_interval

from .held_out import HeldOut, outcomes, read_held_out
from .rollouts import Rollout, like_length, pad, sample_rollouts
from .teacher_states import local_states
from .variance import gradient_noise

logger = logging.getLogger("vopd")

SHOWN_SAMPLES = 4
_BATCH = 128


def greedy_texts(model: Any, tokenizer: Any, prompts: Sequence[Any], max_new_tokens: int) -> list[str]:
    """Return the greedy completion of every prompt."""
    found = sample(model, tokenizer, prompts, temperature=0.0, max_new_tokens=max_new_tokens, batch_size=_BATCH)
    return [completion.text for completion in found]


def held_out_reverse_kl(
    student: Any,
    teacher: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    *,
    max_new_tokens: int,
    seed: int = 0,
    vocabulary: int | None = None,
) -> Interval:
    """Exact KL(student || teacher) per token, on one sampled student completion per prompt.

    The mean is over tokens, as in the loss, so long completions count more. The interval is that of this ratio of
    means, by its linear form: a bootstrap over problems, keeping the tokens of a completion together. `vocabulary` is
    the size of the common vocabulary; default: the tokenizer's.
    """
    size = vocabulary or vocabulary_size(tokenizer)
    rollouts = held_out_rollouts(student, tokenizer, prompts, max_new_tokens=max_new_tokens, seed=seed, vocabulary=size)
    total, count = completion_reverse_kl(student, teacher, rollouts, vocabulary=size)
    value = total.sum() / count.sum()
    low, high = bootstrap_interval(value + (total - value * count) / count.mean())
    return Interval(value.item(), low, high)


def held_out_rollouts(
    student: Any, tokenizer: Any, prompts: Sequence[Any], *, max_new_tokens: int, seed: int, vocabulary: int
) -> list[Rollout]:
    """One sampled completion per prompt.

    Two students with the same prompts and seed draw each token with the same random numbers, so that the difference
    between them has less noise than either.
    """
    rollouts = []
    for start in range(0, len(prompts), _BATCH):
        rollouts += sample_rollouts(
            student, tokenizer, prompts[start : start + _BATCH], max_new_tokens=max_new_tokens, batch_size=_BATCH,
            seed=seed + start, vocab_size=vocabulary,
        )  # fmt: skip
    return rollouts


@torch.no_grad()
def completion_reverse_kl(
    student: Any, teacher: Any, rollouts: Sequence[Rollout], *, vocabulary: int
) -> tuple[Tensor, Tensor]:
    """Exact KL(student || teacher) in nats summed over each completion, and the completion's number of tokens.

    Both are (rollouts,), float64 on the CPU.
    """
    heads = read_head(student, "student"), read_head(teacher, "teacher")
    total, count = torch.zeros(2, len(rollouts), dtype=torch.float64)
    for rows in like_length(rollouts, _BATCH):
        inputs, completion_mask = pad([rollouts[row] for row in rows], student.device)
        mask, sequence = completion_mask[:, 1:], (inputs["input_ids"], inputs["attention_mask"])
        states = [last_hidden_states(model, *sequence, mask.shape[1]) for model in (student, teacher)]
        output = linear_distillation_loss(
            states[0], heads[0].weight, states[1], heads[1].weight,
            torch.zeros_like(mask),  # the exact divergence does not depend on the sampled token
            mask, estimator=FULL_RKL, vocab_size=vocabulary,
            **heads[0].options("student"), **heads[1].options("teacher"),
        )  # fmt: skip
        assert output.reverse_kl is not None  # FULL_RKL always computes it
        total[rows] = (output.reverse_kl * mask).sum(1).double().cpu()
        count[rows] = mask.sum(1).double().cpu()
    return total, count


@dataclass(frozen=True)
class Measurement:
    """What a comparison measures, and how.

    Attributes:
        student: the model that all runs start from.
        held_out: file of problems, see `vopd.experiments.held_out`.
        problems: how many of them the start and the final models answer.
        curve_problems: how many of them every point of the curves is measured on: the start, checkpoints, the end.
        kind: how answers without a library's verifier are graded.
        device: of both models.
        accuracy_curve: whether the accuracy of checkpoints is measured, besides their reverse KL.
        noise_estimators: whose gradient noise is measured at the start, on `noise_contexts` rollouts, resampling every
            token `noise_resamples` times; `noise_top_k` is the k of the top-k estimators.
        chat: settings of the chat template, by their names in `vopd.data.chat.Chat`, where the problems get it.
    """

    student: str
    teacher: str
    held_out: str
    problems: int
    curve_problems: int
    max_new_tokens: int
    kind: str = "math"
    device: str = "cpu"
    accuracy_curve: bool = True
    noise_estimators: list[str] = field(default_factory=list)
    noise_top_k: int | None = None
    noise_contexts: int = 64
    noise_resamples: int = 32
    chat: dict[str, Any] = field(default_factory=dict)


def check_pair(student: str, teacher: str, faults: Faults) -> Any:
    """Check two models without loading their weights; returns the student's tokenizer, or None if it has none."""
    tokenizers = [faults.check(load_tokenizer, name) for name in (student, teacher)]
    if None not in tokenizers:
        models = [faults.check(load_skeleton, name) for name in (student, teacher)]
        if None not in models:
            faults.check(rollout_settings, models[0], tokenizers[0], models[1], tokenizers[1])
    return tokenizers[0]


class ModelPair:
    """A tokenizer, a teacher that is loaded when its weights are first needed, and students that stop at its EOS tokens
    too, as in training.

    Attributes:
        vocabulary: size of the common vocabulary.
        end_ids: EOS ids of both models.
    """

    def __init__(self, student: str, teacher: str, *, teacher_dtype: str, device: str) -> None:
        self.device = device
        self.tokenizer = load_tokenizer(student)
        self._teacher, self._teacher_dtype = teacher, teacher_dtype
        skeletons = load_skeleton(student), load_skeleton(teacher)
        settings = rollout_settings(skeletons[0], self.tokenizer, skeletons[1], load_tokenizer(teacher))
        if settings.cut is not None:
            logger.warning(settings.cut)
        self.vocabulary, self.end_ids = settings.vocab_size, settings.end_ids

    @cached_property
    def teacher(self) -> Any:
        """The teacher with its weights."""
        model = load_model(self._teacher, dtype=self._teacher_dtype, device=self.device).requires_grad_(False)
        check_adapters(model, "teacher")
        return model

    def student(self, source: str | Path, dtype: str = "float32") -> Any:
        """Load a student, or a checkpoint of one. What a run would train requires gradient."""
        model = load_model(source, dtype=dtype, device=self.device, trainable=True)
        check_adapters(model, "student")
        set_end_ids(model, {*end_ids(model, self.tokenizer), *self.end_ids})
        return model


class Evaluator:
    """Measures models according to a Measurement; loads teacher, tokenizer and problems once."""

    def __init__(self, plan: Measurement) -> None:
        self.plan = plan
        self.models = ModelPair(plan.student, plan.teacher, teacher_dtype="float32", device=plan.device)
        self.problems = read_held_out(plan.held_out, plan.problems)
        self.chat = Chat(self.models.tokenizer, **plan.chat)

    def prompts(self, problems: Sequence[HeldOut]) -> list[list[int]]:
        """The token ids of the problems' prompts."""
        try:
            return self.chat.ids([problem.prompt for problem in problems])
        except PromptError as error:
            raise DataError(f"row {error.index} of '{self.plan.held_out}': {error}") from error

    def answers(self, model: Any, problems: Sequence[HeldOut]) -> tuple[list[bool], list[str]]:
        """Greedy completions: whether each is correct, and its text."""
        texts = greedy_texts(model, self.models.tokenizer, self.prompts(problems), self.plan.max_new_tokens)
        return outcomes(problems, texts, self.plan.kind), texts

    def reverse_kl(self, model: Any, problems: Sequence[HeldOut], seed: int = 0) -> Interval:
        return held_out_reverse_kl(
            model, self.models.teacher, self.models.tokenizer, self.prompts(problems), seed=seed,
            max_new_tokens=self.plan.max_new_tokens, vocabulary=self.models.vocabulary,
        )  # fmt: skip

    def curve_point(self, model: Any, right: Sequence[bool], divergence: Interval) -> tuple[float, float]:
        """Reverse KL and accuracy, on the problems of the curves, of a model that was measured on all problems."""
        few = self.problems[: self.plan.curve_problems]
        found = divergence if len(few) == len(self.problems) else self.reverse_kl(model, few)
        return found.value, _share(right[: len(few)])

    def gradient_noise(self, student: Any) -> dict[str, float]:
        """Variance that sampling the tokens adds to the gradient of one batch, by estimator."""
        plan, models = self.plan, self.models
        if not plan.noise_estimators:
            return {}
        rollouts = sample_rollouts(
            student, models.tokenizer, self.prompts(self.problems[: plan.noise_contexts]),
            max_new_tokens=plan.max_new_tokens, batch_size=_BATCH, vocab_size=models.vocabulary,
        )  # fmt: skip
        found = gradient_noise(
            student, local_states(models.teacher), rollouts, estimators=plan.noise_estimators, top_k=plan.noise_top_k,
            resamples=plan.noise_resamples, vocab_size=models.vocabulary,
        )  # fmt: skip
        return {name: noise.variance for name, noise in found.items()}


def measure_start(evaluator: Evaluator) -> dict[str, Any]:
    """Outcomes of the student before training and of the teacher, the student's divergence and gradient noise.

    Also where the student's curves begin, on their problems.
    """
    plan, problems = evaluator.plan, evaluator.problems
    student = evaluator.models.student(plan.student)
    student_right, student_texts = evaluator.answers(student, problems)
    teacher_right, teacher_texts = evaluator.answers(evaluator.models.teacher, problems)
    divergence = evaluator.reverse_kl(student, problems)
    return {
        "student_outcomes": student_right,
        "teacher_outcomes": teacher_right,
        "reverse_kl": asdict(divergence),
        "curve_point": evaluator.curve_point(student, student_right, divergence),
        "gradient_noise": evaluator.gradient_noise(student),
        "samples": {"student before": student_texts[:SHOWN_SAMPLES], "teacher": teacher_texts[:SHOWN_SAMPLES]},
    }


def measure_run(evaluator: Evaluator, folder: Path) -> dict[str, Any]:
    """The final model of a run, and its checkpoints by step on fewer problems."""
    plan, problems = evaluator.plan, evaluator.problems
    model, few = evaluator.models.student(folder / "model"), problems[: plan.curve_problems]
    (right, texts), final = evaluator.answers(model, problems), evaluator.reverse_kl(model, problems)
    last = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    divergence, accuracy = [], []
    for step, path in checkpoints_of(folder):
        if step < last:
            student = evaluator.models.student(path)
            divergence.append((step, evaluator.reverse_kl(student, few).value))
            if plan.accuracy_curve:
                accuracy.append((step, _share(evaluator.answers(student, few)[0])))
    end, share = evaluator.curve_point(model, right, final)
    return {
        "outcomes": right,
        "reverse_kl": asdict(final),
        "curve": [*divergence, (last, end)],
        "accuracy_curve": [*accuracy, (last, share)] if plan.accuracy_curve else [],
        "samples": texts[:SHOWN_SAMPLES],
    }


def _share(right: Sequence[bool]) -> float:
    return sum(right) / len(right)


def checkpoints_of(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of a run's checkpoints, in order, without one that was saved because the run was stopped there."""
    planned = [path for path in folder.glob("checkpoint-*") if not read_json(path / "manifest.json").get("unplanned")]
    return sorted((int(path.name.removeprefix("checkpoint-")), path) for path in planned)

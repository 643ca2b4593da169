"""One measuring process of the demo: `python -m vopd.experiments.measure_job start|run DIRECTORY`.

`start` measures the embedded student and teacher, `run` a finished training run and its checkpoints. Both write
measured.json into the directory.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vopd.data.reasoning import Problem, is_right
from vopd.errors import require
from vopd.models import load_model

from .gradient_noise import gradient_noise
from .measure import greedy_texts, held_out_reverse_kl, sample_contexts
from .pair import embedded_pair, load_embedded_pair, pair_problems

MEASURED_FILE = "measured.json"
HELD_OUT_SEED = 0
# Checkpoints on the way get a smaller measurement than the end.
_CURVE_PROBLEMS = 200
_NOISE_PROBLEMS = 64
_NOISE_RESAMPLES = 32
SHOWN_SAMPLES = 4


def measure_start(problems: list[Problem], estimators: Sequence[str], top_k: dict[str, int]) -> dict[str, Any]:
    """Accuracy of student and teacher, their divergence, and the gradient noise of every estimator."""
    pair = load_embedded_pair()
    student_texts = greedy_texts(pair.student, pair.tokenizer, problems)
    teacher_texts = greedy_texts(pair.teacher, pair.tokenizer, problems)
    contexts = sample_contexts(pair.student, pair.tokenizer, problems[:_NOISE_PROBLEMS])
    noise = gradient_noise(
        pair.student,
        pair.teacher,
        contexts.input_ids,
        contexts.attention_mask,
        contexts.completion_mask,
        estimators=estimators,
        top_k=top_k,
        resamples=_NOISE_RESAMPLES,
        vocab_size=len(pair.tokenizer),
    )
    return {
        "student_outcomes": _outcomes(problems, student_texts),
        "teacher_outcomes": _outcomes(problems, teacher_texts),
        "reverse_kl": asdict(held_out_reverse_kl(pair.student, pair.teacher, pair.tokenizer, problems)),
        "gradient_noise": {name: measured.variance for name, measured in noise.items()},
        "samples": {"student before": student_texts[:SHOWN_SAMPLES], "teacher": teacher_texts[:SHOWN_SAMPLES]},
    }


def measure_run(folder: Path, problems: list[Problem]) -> dict[str, Any]:
    """Accuracy and divergence of a run's final model, and the divergence of its checkpoints by step."""
    pair = load_embedded_pair()
    student = load_model(folder / "model")
    texts = greedy_texts(student, pair.tokenizer, problems)
    final = held_out_reverse_kl(student, pair.teacher, pair.tokenizer, problems)
    last = json.loads((folder / "trainer_state.json").read_text())["global_step"]
    curve = []
    for step, checkpoint in _checkpoints(folder):
        if step < last:
            value = held_out_reverse_kl(
                load_model(checkpoint), pair.teacher, pair.tokenizer, problems[:_CURVE_PROBLEMS]
            )
            curve.append((step, value.value))
    return {
        "outcomes": _outcomes(problems, texts),
        "reverse_kl": asdict(final),
        "curve": [*curve, (last, final.value)],
        "samples": texts[:SHOWN_SAMPLES],
    }


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    return sorted((int(path.name.removeprefix("checkpoint-")), path) for path in folder.glob("checkpoint-*"))


def _outcomes(problems: list[Problem], texts: list[str]) -> list[bool]:
    return [is_right(problem, text) for problem, text in zip(problems, texts, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure models of the embedded pair.")
    parser.add_argument("what", choices=("start", "run"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--problems", type=int, required=True)
    parser.add_argument("--estimators", nargs="*", default=[])
    parser.add_argument("--top-k", type=json.loads, default={})
    arguments = parser.parse_args()
    embedded_pair()
    require("transformers.utils.logging", "train").disable_progress_bar()
    problems = pair_problems("held_out", arguments.problems, HELD_OUT_SEED)
    if arguments.what == "start":
        measured = measure_start(problems, arguments.estimators, arguments.top_k)
    else:
        measured = measure_run(arguments.directory, problems)
    (arguments.directory / MEASURED_FILE).write_text(json.dumps(measured) + "\n")


if __name__ == "__main__":
    main()

"""The study's own small models: a second pair of models for a second task, and a larger student for the embedded pair.

`python -m studies.claims.pairs NAME` builds `sorting` (teacher and student, a vocabulary of 1,200) or `larger` (a
student for the embedded teacher) into studies/claims/models, in bfloat16 so that they stay small. They are committed:
the study starts from the same weights everywhere.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from tools.embedded_pair.recipe import ModelRecipe, train_model
from tools.embedded_pair.tokenizer import train_tokenizer
from vopd.data.reasoning import Problem, extract_answer, stream_problems
from vopd.experiments.pair import embedded_pair, pair_problems
from vopd.models import load_tokenizer, sample

MODELS = Path(__file__).parent / "models"
SORTING_VOCABULARY = 1200
SORTING_OPTIONS = {"min_numbers": 3, "max_numbers": 5, "min_decimals": 0, "max_decimals": 0,
                   "min_value": 100, "max_value": 299}  # fmt: skip
SORTING_TEACHER = ModelRecipe(
    layers=2, width=96, intermediate=256, key_value_heads=1, head_rows=1216,
    steps=1600, schedule_steps=1600, batch=64, learning_rate=3e-3, seed=11,
)  # fmt: skip
SORTING_STUDENT = ModelRecipe(
    layers=2, width=64, intermediate=128, key_value_heads=1, head_rows=1200,
    steps=1600, schedule_steps=2000, batch=48, learning_rate=4e-3, seed=12,
)  # fmt: skip
LARGER_STUDENT = ModelRecipe(
    layers=2, width=96, intermediate=288, key_value_heads=1, head_rows=512,
    steps=420, schedule_steps=600, batch=48, learning_rate=2.5e-3, seed=13,
)  # fmt: skip

_OPENINGS = (("", 0.5), ("In order", 0.25), ("Start", 0.15), ("We take", 0.1))
_NEXT = ((",", 0.5), (" then", 0.25), (" and", 0.15), (" next", 0.1))
_CLOSINGS = (("\n", 0.5), (". So", 0.3), (". The answer is", 0.2))


def sorting_split(question: str) -> str:
    """The split of a question by a hash of its text: one in five is held out."""
    return "held_out" if hashlib.sha256(question.encode()).digest()[0] % 5 == 0 else "train"


def stream_sorting(split: str, seed: int) -> Iterator[Problem]:
    """Distinct problems of reasoning_gym's number_sorting, whole numbers, with a prompt and an answer of one line."""
    for problem in stream_problems("number_sorting", seed, **SORTING_OPTIONS):
        numbers, ordered = (
            " " + ", ".join(text.split(".")[0] for text in problem.metadata[name])
            for name in ("original_numbers", "sorted_numbers")
        )
        question = f"Sort in {problem.metadata['direction']} order:{numbers}\n"
        if sorting_split(question) == split:
            yield Problem("number_sorting", question, ordered.strip(), problem.metadata)


def sorting_problems(split: str, count: int, seed: int) -> list[Problem]:
    """The first `count` of `stream_sorting`."""
    return list(islice(stream_sorting(split, seed), count))


def sorting_completion(problem: Problem, rng: random.Random) -> str:
    """The numbers in order, one by one in drawn wordings, and the answer in tags."""
    numbers = problem.answer.split(", ")
    text = f"{_draw(rng, _OPENINGS)} {numbers[0]}"
    for number in numbers[1:]:
        text += f"{_draw(rng, _NEXT)} {number}"
    return f"{text}{_draw(rng, _CLOSINGS)}<answer> {problem.answer}</answer>"


def is_sorted_right(problem: Problem, completion: str) -> bool:
    """Whether the answer in tags is the right list."""
    answer = extract_answer(completion)
    return answer is not None and answer.split(", ") == problem.answer.split(", ")


def _draw(rng: random.Random, wordings: Any) -> str:
    texts, weights = zip(*wordings, strict=True)
    return str(rng.choices(texts, weights)[0])


def build_sorting() -> dict[str, Any]:
    """Tokenizer, teacher and student of the sorting task."""
    problems = sorting_problems("train", 40_000, 0)
    rng = random.Random(0)
    texts = [problem.question + sorting_completion(problem, rng) for problem in problems[:12_000]]
    # Fills the vocabulary with entries that the models hardly ever see, as in a large model's.
    texts += [problem.question for problem in islice(stream_problems("gsm_symbolic", 0), 200)]
    tokenizer = train_tokenizer(texts, SORTING_VOCABULARY)
    held_out = sorting_problems("held_out", 300, 0)
    found = {}
    for name, recipe in (("sorting-teacher", SORTING_TEACHER), ("sorting-student", SORTING_STUDENT)):
        model = train_model(recipe, problems, tokenizer, name, sorting_completion)
        found[name] = _save(model, tokenizer, MODELS / name, recipe, held_out, is_sorted_right)
    return found


def build_larger() -> dict[str, Any]:
    """A larger student for the embedded teacher, of the same tokenizer and tasks."""
    from vopd.data.reasoning import is_right

    tokenizer = load_tokenizer(embedded_pair().student)
    problems = pair_problems("train", 30_000, 0)
    model = train_model(LARGER_STUDENT, problems, tokenizer, "larger-student")
    held_out = pair_problems("held_out", 300, 0)
    return {"larger-student": _save(model, tokenizer, MODELS / "larger-student", LARGER_STUDENT, held_out, is_right)}


def _save(
    model: Any, tokenizer: Any, folder: Path, recipe: ModelRecipe, held_out: list[Problem],
    right: Callable[[Problem, str], bool],
) -> dict[str, Any]:  # fmt: skip
    """Round to bfloat16, save, and measure what was saved."""
    model = model.to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = model.float()
    found = sample(model, tokenizer, [p.question for p in held_out], temperature=0.0, max_new_tokens=56, batch_size=128)
    accuracy = sum(right(p, drawn.text) for p, drawn in zip(held_out, found, strict=True)) / len(held_out)
    record = {"greedy_accuracy": accuracy, "parameters": model.num_parameters(), "recipe": asdict(recipe)}
    (folder / "recipe.json").write_text(json.dumps(record, indent=2) + "\n")
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the study's own models.")
    parser.add_argument("which", choices=("sorting", "larger"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    started = time.monotonic()
    found = build_sorting() if arguments.which == "sorting" else build_larger()
    print(json.dumps(found, indent=2), f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()

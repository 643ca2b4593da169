"""The embedded pair: two small trained models with one tokenizer, and the problems that they were trained on.

Works offline: the weights are in the package and the problems are generated.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal, get_args

from vopd.data.reasoning import Problem, stream_problems
from vopd.errors import DataError, check_known, require

EMBEDDED = Path(__file__).parent / "embedded"
# Longest worked completion of the tasks below, EOS included, with some margin.
MAX_COMPLETION_TOKENS = 56

Split = Literal["train", "held_out"]
# Two tasks, mixed two to one.
TASKS: tuple[tuple[str, dict[str, int]], ...] = (
    ("leg_counting", {"min_animals": 2, "max_animals": 3, "min_instances": 1, "max_instances": 5}),
    ("chain_sum", {"min_terms": 3, "max_terms": 5, "min_digits": 1, "max_digits": 1}),
)
_SCHEDULE = (0, 1, 0)


@dataclass(frozen=True)
class PairPaths:
    """Folders of the two models, each loadable with transformers, each with the common tokenizer's files."""

    teacher: Path
    student: Path


@dataclass(frozen=True)
class LoadedPair:
    """The two models in float32 on the CPU, in evaluation mode, and their tokenizer."""

    teacher: Any
    student: Any
    tokenizer: Any


def embedded_pair() -> PairPaths:
    """Return the folders of the embedded teacher and student.

    Raises:
        DataError: the package was installed without its weights.
    """
    paths = PairPaths(EMBEDDED / "teacher", EMBEDDED / "student")
    for path in (paths.teacher, paths.student):
        if not (path / "model.safetensors").is_file():
            raise DataError(f"no weights in {path}; reinstall vopd or build them with `make embedded-pair`")
    return paths


def load_embedded_pair() -> LoadedPair:
    """Load the embedded teacher, student and tokenizer. Needs the extra `train`."""
    transformers = require("transformers", "train")
    paths = embedded_pair()
    load = transformers.AutoModelForCausalLM.from_pretrained
    teacher, student = (load(path, dtype="float32").eval() for path in (paths.teacher, paths.student))
    return LoadedPair(teacher, student, transformers.AutoTokenizer.from_pretrained(paths.student))


def split_of(question: str) -> Split:
    """Return the split of a question, by a hash of its text: one question in five is held out.

    The split depends on the text alone, so no seed and no count can put a held-out problem into the training problems,
    the pair's own supervised training included.
    """
    bucket = hashlib.sha256(question.encode()).digest()[0] % 5
    return "held_out" if bucket == 0 else "train"


def pair_problems(split: Split, count: int, seed: int) -> list[Problem]:
    """Return `count` distinct problems of one split, two of the first task for each one of the second.

    The same seed gives the same list.
    """
    check_known("split", split, get_args(Split))
    streams = [
        filter(lambda problem: split_of(problem.question) == split, stream_problems(name, seed, **options))
        for name, options in TASKS
    ]
    return [next(streams[index]) for index in islice(cycle(_SCHEDULE), count)]


def prompt_text(problem: Problem) -> str:
    """Return the prompt that the pair was trained on: the library's question text, unchanged.

    So the pair also answers prompts from "reasoning_gym:chain_sum" or "reasoning_gym:leg_counting".
    """
    return problem.question
